"""What detectors and segmenters learn from: annotated images, their preflight report, and views."""
