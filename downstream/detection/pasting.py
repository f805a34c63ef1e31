"""Masks in the frames of their boxes, made masks of the image as COCO's run lengths."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from downstream.dense.outlines import Rle, encode

THRESHOLD = 0.5
"""Probability above which a pixel belongs to an instance."""


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[Rle]:
    """Where instances are: their probabilities, stretched over their boxes, above `THRESHOLD`.

    Bilinear between the centres of a mask's cells, 0 outside of them, read off at the centres of
    the image's pixels, as Detectron2 does it (`detectron2/layers/mask_ops.py`, `_do_paste_mask`;
    torchvision's `paste_masks_in_image` first rounds the box to whole px). One instance at a time:
    all at once would be k whole images.

    Args:
        masks: float [k, m, m], probabilities.
        boxes: float [k, 4] xyxy, continuous px.
        size: height and width of the image.

    Returns:
        COCO's compressed run lengths of each.
    """
    found = []
    for cells, box in zip(masks.cpu().double().numpy(), boxes.cpu().double().numpy(), strict=True):
        whole = np.zeros(size, np.uint8, order="F")
        rows, of_rows = _weights(box[1], box[3], cells.shape[0], size[0])
        columns, of_columns = _weights(box[0], box[2], cells.shape[1], size[1])
        whole[rows, columns] = of_rows @ cells @ of_columns.T > THRESHOLD
        found.append(encode(whole))
    return found


def _weights(low: float, high: float, cells: int, length: int) -> tuple[slice, np.ndarray]:
    """The pixels of one axis whose centres are in [low, high], and the weight of each cell on each
    of them, float64 [pixels, cells]."""
    first = min(max(0, int(np.ceil(low - 0.5))), length)
    last = min(max(first, int(np.floor(high - 0.5)) + 1), length)  # none where the box has no side
    centres = np.arange(first, last) + 0.5
    places = (centres - low) / max(high - low, np.finfo(float).tiny) * cells - 0.5
    return slice(first, last), np.maximum(1 - abs(places[:, None] - np.arange(cells)), 0)
