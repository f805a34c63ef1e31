"""The losses of a segmenter: cross-entropy of pixels, classes weighted where asked, and Dice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from downstream.segmentation.data.class_table import IGNORE
from ssld.common.errors import InputError, did_you_mean

TINY = torch.finfo(torch.float32).tiny
"""0 / tiny is 0."""


def weights_of(given: Mapping[str, float], names: Sequence[str]) -> Tensor | None:
    """float32 [classes], 1 for a class that is not given; None where none is.

    Raises:
        InputError: a name that no class has; all weights are 0.
    """
    for name in given:
        if name not in names:
            raise InputError(
                f"loss.class_weights has {name!r}, which no class is called"
                f"{did_you_mean(name, names)}; the classes are {', '.join(names)}"
            )
    weights = torch.tensor([given.get(name, 1.0) for name in names])
    if not weights.any():
        raise InputError("loss.class_weights are all 0, so that nothing would be learned: mend one")
    return weights if given else None


def counted(masks: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Pixels that count, or the sum of their weights, of the mean image: a float32 scalar.

    Args:
        masks: class numbers, uint8 or int64 [b, h, w]; IGNORE does not count.
        class_weights: float32 [classes].
    """
    known = masks != IGNORE
    if class_weights is None:
        return known.sum().float() / len(masks)
    return class_weights.to(masks.device)[masks[known].long()].sum() / len(masks)


def pixel_loss(
    logits: Tensor,
    masks: Tensor,
    valid_per_image: Tensor | None = None,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of each image, so that the mean over images is that over valid pixels.

    With v the valid pixels of the mean image, an image's loss is the sum over its valid pixels / v.
    Images with more valid pixels weigh more: every pixel of the batch weighs the same, as with
    torch's `cross_entropy(..., ignore_index=255)`. With `class_weights` w a pixel of class c counts
    w[c] times, in the sum and in v, as with torch's `weight=w`.

    Args:
        logits: float [b, classes, h, w].
        masks: class numbers, uint8 or int64 [b, h, w]; IGNORE does not count.
        valid_per_image: v as a float scalar, where the batch is a part of a larger one: `counted`
            of all images of all processes. Then the mean over all images of all processes is that
            over all their valid pixels. By default that of this batch.
        class_weights: float32 [classes].

    Returns:
        float32 [b]; 0, and so are its gradients, where no pixel is valid.
    """
    if valid_per_image is None:
        valid_per_image = counted(masks, class_weights)
    weights = None if class_weights is None else class_weights.to(logits.device)
    each = F.cross_entropy(
        logits.float(), masks.long(), weights, ignore_index=IGNORE, reduction="none"
    )  # [b, h, w]
    return each.sum((1, 2)) / valid_per_image.float().clamp(min=TINY)


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """1 - Dice of each image, the mean of the classes that its mask has.

    Of a class 2 Σ p g / (Σ p² + Σ g²) over valid pixels, p the probability, g 1 where it is:
    Milletari et al. 2016, V-Net (arXiv:1606.04797), section 3. *Deviation*: there are two classes;
    here each class of the image is one against all others.

    Args:
        logits: float [b, classes, h, w].
        masks: class numbers, uint8 or int64 [b, h, w]; IGNORE does not count.

    Returns:
        float32 [b]; 0, and so are its gradients, where no pixel is valid.
    """
    classes, known = logits.shape[1], masks != IGNORE
    there = F.one_hot(torch.where(known, masks, 0).long(), classes).permute(0, 3, 1, 2)
    there = there * known[:, None]  # [b, classes, h, w]
    p = logits.float().softmax(1) * known[:, None]
    both, either = (p * there).sum((2, 3)), (p.square() + there).sum((2, 3))  # [b, classes]
    dice = 2 * both / either.clamp(min=TINY)
    seen = there.sum((2, 3)) > 0
    return ((1 - dice) * seen).sum(1) / seen.sum(1).clamp(min=1)
