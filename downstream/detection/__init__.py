"""Detectors over our backbones: networks, losses, decoding, evaluation, ONNX."""
