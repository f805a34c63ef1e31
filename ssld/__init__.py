"""ssld: label-free distillation of vision backbones (Cui et al. 2021)."""

__version__ = "0.1.0"
