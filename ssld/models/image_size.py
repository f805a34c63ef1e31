"""Networks that take images of one size alone, as timm builds them, and what mends that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch

REFUSALS = (
    *(AssertionError, RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError),
)
"""What networks of timm raise at images or arguments that they cannot take."""


def size_advice(architecture: str, args: Mapping[str, Any], size: tuple[int, int]) -> str:
    """Arguments with which a network that does not run on images of a size does so, as words for
    the end of a message; tried without memory. Those that leave all weights' shapes come first.

    Args:
        architecture: as `timm.create_model` knows it.
        size: height and width in px.

    Returns:
        empty where none was found.
    """
    if not timm.is_model(architecture.split(".")[0]):
        return ""
    side = f"{size[0]}" if size[0] == size[1] else f"[{size[0]}, {size[1]}]"
    tried = (
        ({"dynamic_img_size": True}, "{dynamic_img_size: true}"),
        ({"img_size": size}, f"{{img_size: {side}}}"),
    )
    for more, words in tried:
        if _runs(architecture, {**args, **more}, size):
            return f", or give it `args: {words}`, with which it does"
    return ""


def _runs(architecture: str, args: Mapping[str, Any], size: tuple[int, int]) -> bool:
    try:
        with torch.device("meta"), torch.no_grad():
            timm.create_model(architecture, **args).eval()(torch.zeros(1, 3, *size))
    except REFUSALS:
        return False
    return True
