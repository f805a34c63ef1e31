"""Near-nothing yet: fine-tuning of detectors and segmenters on distilled backbones lives here."""
