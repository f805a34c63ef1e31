"""Cross-entropy over pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from downstream.segmentation.data.class_table import IGNORE


def pixel_loss(logits: Tensor, masks: Tensor, valid_per_image: Tensor | None = None) -> Tensor:
    """Cross-entropy of each image, so that the mean over images is that over valid pixels.

    With v the valid pixels of the mean image, an image's loss is the sum over its valid pixels / v.
    Images with more valid pixels weigh more: every pixel of the batch weighs the same, as with
    torch's `cross_entropy(..., ignore_index=255)`.

    Args:
        logits: float [b, classes, h, w].
        masks: class numbers, uint8 or int64 [b, h, w]; IGNORE does not count.
        valid_per_image: v as a float scalar, where the batch is a part of a larger one: all valid
            pixels over all processes / all images over all processes. Then the mean over all images
            of all processes is that over all their valid pixels. By default that of this batch.

    Returns:
        float32 [b]; 0, and so are its gradients, where no pixel is valid.
    """
    each = F.cross_entropy(
        logits.float(), masks.long(), ignore_index=IGNORE, reduction="none"
    )  # [b, h, w]
    if valid_per_image is None:
        valid_per_image = (masks != IGNORE).sum() / len(masks)
    tiny = torch.finfo(torch.float32).tiny  # 0 / tiny is 0
    return each.sum((1, 2)) / valid_per_image.float().clamp(min=tiny)
