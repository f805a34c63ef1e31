"""Random erasing (Zhong et al. 2017, arXiv:1708.04896, algorithm 1): a rectangle of even noise.

As in timm and torchvision the logarithm of its ratio is drawn evenly, not the ratio, and a
rectangle that does not fit is drawn again a few times only.
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

TRIALS = 10
"""To place a rectangle in the image, which else is left as it is (torchvision `RandomErasing`)."""


class Erasing(NamedTuple):
    """Of which rectangles."""

    probability: float
    area: tuple[float, float] = (0.02, 1 / 3)
    """Share of the image (timm's `RandomErasing`)."""
    ratio: tuple[float, float] = (0.3, 1 / 0.3)
    """Height to width."""


def erase(pixels: Tensor, draw: random.Random, erasing: Erasing) -> Tensor:
    """Pixels in which a rectangle may be noise from 0 to 255, uint8 [3, h, w] each."""
    if draw.random() >= erasing.probability:
        return pixels
    height, width = pixels.shape[1:]
    low, high = (math.log(x) for x in erasing.ratio)
    for _ in range(TRIALS):
        area = height * width * draw.uniform(*erasing.area)
        ratio = math.exp(draw.uniform(low, high))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < h < height and 0 < w < width:
            top, left = draw.randint(0, height - h), draw.randint(0, width - w)
            noise = np.random.default_rng(draw.getrandbits(64))
            erased = pixels.clone()
            erased[:, top : top + h, left : left + w] = torch.from_numpy(
                noise.integers(0, 256, (3, h, w), dtype=np.uint8)
            )
            return erased
    return pixels
