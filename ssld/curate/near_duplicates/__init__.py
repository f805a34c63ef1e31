"""Near-duplicates of the reference set, and within what was selected."""
