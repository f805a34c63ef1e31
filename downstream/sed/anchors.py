"""Predictions of all anchors, of one-stage detectors and of an RPN (sections 3.1 and 3.2)."""

from __future__ import annotations

from torch import Tensor

from downstream.detection.heads.torchvision_heads import Raw
from downstream.sed.predictions import Pair, Predictions


def scale_pair(large: Raw, small: Raw, sizes: Tensor, s: int) -> Pair:
    """Level f of an image and level f - s of it at 1 / 2^s of its size, over all anchors.

    These have the same cells, and anchors of half the size for each s where sides double from level
    to level; offsets are in units of the anchor. The s finest levels of the image and the s
    coarsest of the small one have no partner.

    Args:
        sizes: (h, w) [b, 2] of what is picture in `large`.

    Raises:
        ValueError: the cells are not the same, as the sides of the image are no multiples of 2^s
            times the network's stride.
    """
    if large.levels[s:] != small.levels[: max(0, len(small.levels) - s)]:
        raise ValueError(
            f"levels of {large.levels} anchors do not fit {small.levels} at 1 / {2**s} of the size:"
            f" pad the images to a multiple of {2**s} times the network's stride"
        )
    start, end = sum(large.levels[:s]), sum(large.levels[s:])
    first = Predictions(large.logits[:, start:], large.offsets[:, start:], None)
    second = Predictions(small.logits[:, :end], small.offsets[:, :end], None)
    return Pair(first, second, in_picture(large, sizes)[:, start:])


def same_pair(first: Raw, second: Raw, sizes: Tensor) -> Pair:
    """All anchors of two views of one geometry."""
    one, other = (Predictions(x.logits, x.offsets, None) for x in (first, second))
    return Pair(one, other, in_picture(first, sizes))


def in_picture(raw: Raw, sizes: Tensor) -> Tensor:
    """bool [b, anchors]: the anchor's cell begins in the picture of (h, w) `sizes` [b, 2]."""
    anchors = raw.anchors
    x, y = (anchors[:, 0] + anchors[:, 2]) / 2, (anchors[:, 1] + anchors[:, 3]) / 2
    height, width = sizes.to(anchors).unsqueeze(2).unbind(1)  # [b, 1] each
    return (x < width) & (y < height)
