"""Near-nothing yet: the catalogue of distilled `_ssld` backbones lives here."""
