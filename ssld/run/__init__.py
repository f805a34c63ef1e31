"""A training run: loop, checkpoints, logs, report."""
