"""Images: sources, sampler, labels, views and batches."""
