"""Classifiers for places where timm is not."""
