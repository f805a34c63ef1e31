"""Trained detectors and segmenters at work: `ssld predict` and `ssld export`."""
