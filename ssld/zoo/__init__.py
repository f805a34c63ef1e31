"""`ssld zoo`: the package `zoo` as commands, and releases of runs."""
