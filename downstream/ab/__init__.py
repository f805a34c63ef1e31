"""Which of two backbones is better downstream."""
