"""A backbone, fine-tuned as a classifier."""
