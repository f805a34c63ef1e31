"""Distilled `_ssld` backbones. `import zoo` makes timm know them:

    import timm, zoo

    model = timm.create_model("resnet50d_ssld", pretrained=True)

The catalogue is `zoo/catalog.yaml`; where weights come from and how they are verified stands in
`zoo/weights.py`; what timm lacks in `zoo/architectures/`; how Paddle's weights become timm's in
`zoo/paddle/`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.catalog import Entry, catalog, find
from zoo.errors import InputError
from zoo.with_timm import register_with_timm

if TYPE_CHECKING:
    from zoo.weights import backbone, weights_file

__all__ = ["Entry", "InputError", "backbone", "catalog", "find", "weights_file"]

register_with_timm()


def __getattr__(name: str) -> Any:
    """The two that import torch, when they are asked for."""
    if name in ("backbone", "weights_file"):
        from zoo import weights

        return getattr(weights, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
