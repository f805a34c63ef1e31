"""The one training loop, and all that a run is: checkpoints, logs, folder."""
