"""What an exported file says of a network on a backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


def pretrained_cfg(
    network: nn.Module, size: tuple[int, int], class_names: Sequence[str] | None
) -> dict[str, Any]:
    """The same that timm's classifiers say of themselves; for images of one (height, width)."""
    backbone: Any = network.backbone
    return {
        "architecture": f"{type(network).__name__} {backbone.architecture}",
        "input_size": (3, *size),
        "mean": backbone.mean,
        "std": backbone.std,
        "label_names": class_names,
    }
