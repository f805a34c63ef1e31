"""What a run will take and cost, and what is wrong with it: `ssld plan` and `ssld bench`."""
