"""Several runs in one table and one set of curves."""
