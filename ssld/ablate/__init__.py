"""Ablation: one `ssld recipe` for each cell of a grid of settings -> tables and plots.

`command.py` is the way through it. `grid.py` reads the file, `pool.py` runs the cells, `state.py`
knows which are done, `results.py` and `summary.py` are the tables.
"""
