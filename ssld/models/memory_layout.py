"""How the weights of convolutions lie in memory."""

from __future__ import annotations

import torch
from torch import nn


def as_images_lie(model: nn.Module) -> None:
    """Write the strides of weights that lie alike in either memory format, 1 x 1 and depthwise
    ones, as channels last; no value moves.

    Images come with channels last in memory (`Classifier.preprocess`), and so do the gradients
    of what convolves them. A weight of size 1 in some dimension keeps such strides, while
    DistributedDataParallel lays out its buckets by the weight's own: it would warn that they do not
    match, and copy every gradient.
    """
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d) or weight is None:
            continue
        if weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last):
            _, i, h, w = weight.shape
            weight.data = weight.data.as_strided(weight.shape, (i * h * w, 1, w * i, i))
