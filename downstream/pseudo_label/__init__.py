"""Annotations by a trained network, for images that have none: `ssld pseudo-label`."""
