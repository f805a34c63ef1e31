"""Images: sources, order, views and batches."""
