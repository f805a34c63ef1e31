"""Semantic segmentation: networks, loss, evaluation and export (SSLD section 4.6, table 9)."""
