"""AutoAugment's policy for ImageNet, as the reference implementation applies it.

Cubuk et al. 2019, "AutoAugment: Learning Augmentation Policies from Data" (CVPR), section 4.2 and
the appendix's table of 25 sub-policies; PaddleClas (Apache-2.0), ppcls/data/preprocess/ops/
autoaugment.py, has the same table. As there, and other than in torchvision:

- What comes in from outside the image is grey 128 (torchvision: black).
- Shears are about the top left corner and bicubic (torchvision: nearest).
- Rotations take the nearest pixel and go one way, against the clock (torchvision, paper: either).
- Solarising inverts from 256 (1 - level / 9) on (torchvision: from 255 of them).
- Blends and histograms are Pillow's.
"""

from __future__ import annotations

import math
import random

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

GREY = (128, 128, 128)
LEVELS = 9
"""The highest level of a strength; the lowest is 0."""
SubPolicy = tuple[tuple[str, float, int], tuple[str, float, int]]
"""Two operations in turn: name, probability, level."""
POLICY: tuple[SubPolicy, ...] = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("equalize", 0.4, 4), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, 7)),
    (("posterize", 0.8, 5), ("equalize", 1.0, 2)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, 8), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, 2)),
    (("equalize", 0.0, 7), ("equalize", 0.8, 8)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 8)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, 9)),
    (("color", 0.4, 0), ("equalize", 0.6, 3)),
    (("equalize", 0.4, 7), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, 5)),
    (("invert", 0.6, 4), ("equalize", 1.0, 8)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, 8), ("equalize", 0.6, 3)),
)
BLENDS = {
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
}


def autoaugment(pixels: Tensor, draw: random.Random) -> Tensor:
    """One sub-policy on uint8 [h, w, 3]; `draw` decides which, and each probability and sign."""
    image = Image.fromarray(np.ascontiguousarray(pixels.numpy()))
    for name, probability, level in draw.choice(POLICY):
        if draw.random() < probability:
            image = changed(image, name, level, draw)
    return torch.from_numpy(np.array(image))


def changed(image: Image.Image, name: str, level: int, draw: random.Random) -> Image.Image:
    """An RGB image after one operation of strength `level` of `LEVELS`."""
    share = level / LEVELS
    if name == "shear_x":
        slope = 0.3 * share * draw.choice((-1, 1))
        return image.transform(
            image.size,
            Image.Transform.AFFINE,
            (1, slope, 0, 0, 1, 0),
            Image.Resampling.BICUBIC,
            fillcolor=GREY,
        )
    if name == "rotate":
        return image.rotate(30 * share, Image.Resampling.NEAREST, fillcolor=GREY)
    if name == "posterize":
        return ImageOps.posterize(image, round(8 - 4 * share))
    if name == "solarize":
        return ImageOps.solarize(image, math.ceil(256 * (1 - share)))  # from that value on
    if name in BLENDS:
        return BLENDS[name](image).enhance(1 + 0.9 * share * draw.choice((-1, 1)))
    plain = {
        "autocontrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
        "invert": ImageOps.invert,
    }
    return plain[name](image)
