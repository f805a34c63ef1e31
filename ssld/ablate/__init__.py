"""Ablation: one `ssld recipe` for each trial of a grid of settings -> tables and plots.

`command.py` is the way through it. `grid.py` reads the file, `pool.py` runs the trials, `state.py`
knows which are done, `results.py` and `summary.py` are the tables.
"""
