"""A backbone for detectors and segmenters: features, weights, settings."""
