"""The images of the pool and the reference sets."""
