"""Views of images with masks; a training view is a pure function of (seed, sample id, view number),
as those of `ssld/data/transforms.py` are.

Image and mask go through torchvision v2 as tv_tensors. Two traps are mended: masks are resized by
`nearest-exact`, for plain `nearest`, v2's silent choice for masks, takes pixels up to half a pixel
away from where the image's bilinear ones are; and what is padded is ignored, not class 0.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from downstream.dense.operations import COLOURS, cutout, move, recolour, resize_mask
from downstream.dense.policies import Operation, draw_operations
from downstream.segmentation.config import MaskAugmentConfig
from downstream.segmentation.data.class_table import IGNORE
from downstream.segmentation.data.masks import MaskSource
from ssld.data.decode import decode
from ssld.data.transforms import key_of

HUE = 18 / 255
"""Largest turn of the hue, as a share of the circle: PaddleSeg's RandomDistort adds up to 18 to the
hue of Pillow's HSV, which has 255 to a turn."""
COLOUR_PROBABILITY = 0.5
"""Of each of the four changes of colour (RandomDistort's default)."""


class TrainMaskView:
    """Change by the policy, then scale, pad, crop, flip and change colours, in the order and with
    the draws of PaddleSeg's ResizeStepScaling, RandomPaddingCrop, RandomHorizontalFlip and
    RandomDistort (paddleseg/transforms/transforms.py).

    Args:
        seed: the run's.
        mean: of the network's normalisation, in [0, 1]; what is padded has this colour.
    """

    def __init__(
        self, augment: MaskAugmentConfig, seed: int, mean: Sequence[float] = (0.5, 0.5, 0.5)
    ) -> None:
        self.augment = augment
        self.seed = seed
        self.fill = [float(round(255 * value)) for value in mean]

    def __call__(
        self, source: MaskSource, index: int, view: int, batch: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Image uint8 [h, w, 3] and mask uint8 [h, w] of `augment.crop`; IGNORE where the image is
        unlabelled or padded.

        Args:
            batch: not used: all views have one size.

        Raises:
            OSError, Unreadable: the image or the mask cannot be read, or they do not fit.
        """
        draw = random.Random(key_of(self.seed, source.sample_id(index), view))
        image, mask = _read(source, index)
        for operation in draw_operations(self.augment, draw, boxes=False):
            image, mask = operate(image, mask, operation, draw)
        image, mask = _resize(image, mask, self._factor(draw, mask.shape))
        image, mask = self._pad(image, mask)
        height, width = self.augment.crop
        top = draw.randint(0, mask.shape[0] - height)
        left = draw.randint(0, mask.shape[1] - width)
        image, mask = (tv.crop(x, top, left, height, width) for x in (image, mask))
        if draw.random() < self.augment.flip:
            image, mask = tv.horizontal_flip(image), tv.horizontal_flip(mask)
        if self.augment.colour:
            image = change_colours(image, self.augment.colour, draw)
        return _plain(image), mask.as_subclass(Tensor).contiguous()

    def _factor(self, draw: random.Random, size: Sequence[int]) -> float:
        """By which an image of that height and width is resized."""
        factor = self.augment.factor(draw)
        if self.augment.scale_of == "image":
            return factor
        return factor * min(a / b for a, b in zip(self.augment.crop, size, strict=True))

    def _pad(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Below and to the right, up to the crop."""
        below = max(self.augment.crop[0] - mask.shape[0], 0)
        right = max(self.augment.crop[1] - mask.shape[1], 0)
        if not below and not right:
            return image, mask
        padding = [0, 0, right, below]
        return tv.pad(image, padding, fill=self.fill), tv.pad(mask, padding, fill=IGNORE)


class EvalMaskView:
    """Image and mask as they are."""

    def __call__(
        self, source: MaskSource, index: int, view: int = 0, batch: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Image uint8 [h, w, 3] and mask uint8 [h, w], of the image's own size.

        Raises:
            OSError, Unreadable: the image or the mask cannot be read, or they do not fit.
        """
        image, mask = _read(source, index)
        return _plain(image), mask.as_subclass(Tensor)


def operate(
    image: tv_tensors.Image, mask: tv_tensors.Mask, operation: Operation, draw: random.Random
) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """An image, uint8 [3, h, w], and its mask, uint8 [h, w], after an operation of a policy. What
    comes in from outside is ignored; what is cut out keeps its class."""
    name, strength = operation.name, operation.strength
    if name == "cutout":
        return cutout(image, strength, draw), mask
    if name in COLOURS:
        return recolour(image, name, strength), mask
    return move(image, name, strength), move(mask, name, strength, outside=IGNORE)


def change_colours(image: Tensor, strength: float, draw: random.Random) -> Tensor:
    """Brightness, contrast, saturation (each by 1 ± strength) and hue (± HUE of a turn), each with
    probability COLOUR_PROBABILITY, in random order.

    Args:
        image: uint8 [3, h, w].
    """
    changes = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    draw.shuffle(changes)
    for change in changes:
        if draw.random() < COLOUR_PROBABILITY:
            by = HUE if change is tv.adjust_hue else strength
            around = 0.0 if change is tv.adjust_hue else 1.0
            image = change(image, draw.uniform(around - by, around + by))
    return image


def _read(source: MaskSource, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """Image uint8 [3, h, w] and mask uint8 [h, w]."""
    pixels = decode(source.read(index))
    mask = source.mask(index, (pixels.shape[0], pixels.shape[1]))
    image = tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))
    return image, tv_tensors.Mask(torch.from_numpy(mask))


def _resize(image: Tensor, mask: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """By `factor`, without a low-pass filter, as the reference's cv2.INTER_LINEAR."""
    if factor == 1:
        return image, mask
    size = [max(1, round(side * factor)) for side in mask.shape]
    return (
        tv.resize(image, size, InterpolationMode.BILINEAR, antialias=False),
        resize_mask(mask, size),
    )


def _plain(image: Tensor) -> Tensor:
    """[3, h, w] -> [h, w, 3], contiguous, no tv_tensor."""
    return image.as_subclass(Tensor).permute(1, 2, 0).contiguous()
