"""Views: what is made of an image before a network sees it.

A training view is a pure function of (seed, sample id, view number): no global random state decides
an augmentation. From this follow the same run on any number of workers, resuming at any step, and
stored teacher labels that can be replayed.
"""

from __future__ import annotations

import hashlib
import math
import random
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ssld.data.autoaugment import autoaugment
from ssld.data.config import AugmentConfig
from ssld.data.decode import decode, image_size
from ssld.data.erasing import Erasing, erase

Box = tuple[int, int, int, int]
"""top, left, height, width in px."""


class TrainView:
    """Random resized crop, flip and policy (SSLD section 4.2), and random erasing.

    Args:
        augment: ranges and probabilities.
        size: side of the view in px.
        seed: the run's.
    """

    def __init__(self, augment: AugmentConfig, size: int, seed: int) -> None:
        self.augment = augment
        self.size = size
        self.seed = seed
        self.randaugment = _randaugment(augment)

    def __call__(self, data: bytes, sample_id: str, view: int) -> Tensor:
        """The view as uint8 [size, size, 3].

        Raises:
            Unreadable: `data` is not an image.
        """
        key = key_of(self.seed, sample_id, view)
        draw = random.Random(key)
        height, width = image_size(data)
        box = crop_box(draw, height, width, self.augment.scale, self.augment.ratio)
        pixels = _resized_crop(
            data,
            (height, width),
            box,
            self.size,
            self.augment.interpolation,
            self.augment.antialias,
        )
        if draw.random() < self.augment.flip:
            pixels = pixels.flip(1)
        if self.augment.policy == "autoaugment":
            pixels = autoaugment(pixels, draw)
        if self.randaugment is not None:
            with torch.random.fork_rng(devices=[]):
                # Not torch.manual_seed, which would seed the GPUs' generators, too.
                torch.default_generator.manual_seed(key)
                pixels = self.randaugment(pixels.permute(2, 0, 1)).permute(1, 2, 0)
        pixels = erase(pixels.permute(2, 0, 1), draw, Erasing(self.augment.erasing))
        return pixels.permute(1, 2, 0).contiguous()


THIN_ASPECT = 16
"""How many times longer than wide an image is that is cropped before it is resized: a strip of
1 x 20000 px would become 256 x 5120000."""


class EvalView:
    """Resize the shorter side to size / crop_pct, crop the centre: timm's evaluation transform.

    Besides the decoded image (`decode.py`) it takes 3 * THIN_ASPECT * (size / crop_pct)^2 bytes at
    most.
    """

    def __init__(self, size: int, crop_pct: float, interpolation: str) -> None:
        self.size = size
        self.crop_pct = crop_pct
        self.interpolation = (
            interpolation if interpolation in ("bilinear", "bicubic") else "bicubic"
        )

    def __call__(self, data: bytes, sample_id: str = "", view: int = 0) -> Tensor:
        """The view as uint8 [size, size, 3].

        Raises:
            Unreadable: `data` is not an image.
        """
        height, width = image_size(data)
        shorter = math.floor(self.size / self.crop_pct)
        side_h, side_w = self._resized(height, width)
        reduce = reduction(min(height, width), 2 * shorter)  # keep twice the size: stay close
        pixels = torch.from_numpy(decode(data, reduce))
        if max(height, width) > THIN_ASPECT * min(height, width):
            pixels, side_h, side_w = _without_ends(pixels, shorter)
        smaller = shorter < min(height, width)
        pixels = resize(pixels, (side_h, side_w), self.interpolation, antialias=smaller)
        return _middle(pixels, self.size, self.size).contiguous()

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width in px before the crop."""
        side = math.floor(self.size / self.crop_pct)
        if height <= width:
            return side, int(side * width / height)
        return int(side * height / width), side


MAX_ASPECT = 8
"""How many times longer than wide the part of an image is that is resized in mode center."""


class Seen(Protocol):
    """What a `Classifier` says of its preprocessing."""

    input_size: int
    crop_pct: float
    crop_mode: str
    interpolation: str
    mean: tuple[float, ...]


class FramedView(EvalView):
    """Other modes than center, and crops that are larger than what is resized (crop_pct above 1):
    there is black around it then. As timm's `create_transform` does it for the `crop_mode` and
    `crop_pct` of its weights (timm/data/transforms_factory.py, Apache-2.0):

        center   the shorter side to size / crop_pct, the middle of it
        squash   both sides to size / crop_pct, the middle of it
        border   the longer side to size / crop_pct, the middle, and the mean colour around it
    """

    def __init__(self, network: Seen, size: int) -> None:
        super().__init__(size, network.crop_pct, network.interpolation)
        self.crop_mode = network.crop_mode
        border = network.crop_mode == "border"
        self.fill = [round(255 * x) if border else 0 for x in network.mean]

    def __call__(self, data: bytes, sample_id: str = "", view: int = 0) -> Tensor:
        """The view as uint8 [size, size, 3].

        Raises:
            Unreadable: `data` is not an image.
        """
        height, width = image_size(data)
        reduce = reduction(min(height, width), 2 * math.floor(self.size / self.crop_pct))
        pixels = torch.from_numpy(decode(data, reduce))
        if self.crop_mode == "center":
            height, width = min(height, MAX_ASPECT * width), min(width, MAX_ASPECT * height)
            h, w = pixels.shape[:2]
            pixels = _middle(pixels, min(h, MAX_ASPECT * w), min(w, MAX_ASPECT * h))
        side_h, side_w = self._resized(height, width)
        smaller = side_h < height or side_w < width
        pixels = resize(pixels, (side_h, side_w), self.interpolation, antialias=smaller)
        padded = torch.tensor(self.fill, dtype=torch.uint8).expand(
            max(side_h, self.size), max(side_w, self.size), 3
        )
        if padded.shape != pixels.shape:
            top, left = ((a - b) // 2 for a, b in zip(padded.shape, (side_h, side_w), strict=False))
            padded = padded.clone()
            padded[top : top + side_h, left : left + side_w] = pixels
            pixels = padded
        return _middle(pixels, self.size, self.size).contiguous()

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        side = math.floor(self.size / self.crop_pct)
        if self.crop_mode == "squash":
            return side, side
        if self.crop_mode == "border":
            ratio = max(height, width) / side
            return max(1, round(height / ratio)), max(1, round(width / ratio))
        return super()._resized(height, width)


def eval_view(network: Seen, size: int | None = None) -> EvalView:
    """The evaluation view of a network, at its own size or another (px)."""
    side = size or network.input_size
    if network.crop_mode == "center" and network.crop_pct <= 1:
        return EvalView(side, network.crop_pct, network.interpolation)
    return FramedView(network, side)


class SquashView:
    """The whole frame as a square, its sides scaled differently: nothing is cut away."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, data: bytes, sample_id: str = "", view: int = 0) -> Tensor:
        """The view as uint8 [size, size, 3].

        Raises:
            Unreadable: `data` is not an image.
        """
        reduce = reduction(min(image_size(data)), 2 * self.size)
        pixels = torch.from_numpy(decode(data, reduce))
        return resize(pixels, (self.size, self.size), "bilinear", antialias=True)


def crop_box(
    draw: random.Random,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Box:
    """A random crop as torchvision's RandomResizedCrop.make_params draws it: ten tries, then the
    largest centre crop within `ratio` (Szegedy et al. 2015, section 6)."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = height * width * draw.uniform(*scale)
        aspect = math.exp(draw.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return draw.randint(0, height - h), draw.randint(0, width - w), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = min(height, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = min(width, round(height * ratio[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def _resized_crop(
    data: bytes, full: tuple[int, int], box: Box, size: int, interpolation: str, antialias: bool
) -> Tensor:
    """Decode no larger than the crop needs, cut, resize; `box` is in px of the full image."""
    top, left, h, w = box
    reduce = reduction(min(h, w), size)
    pixels = decode(data, reduce)
    if pixels.shape[:2] != full:  # exactly 1 / reduce, and a last row and column that are partial
        bottom, right = -(-(top + h) // reduce), -(-(left + w) // reduce)
        top, left = top // reduce, left // reduce
        h, w = min(bottom, pixels.shape[0]) - top, min(right, pixels.shape[1]) - left
    crop = torch.from_numpy(pixels[top : top + h, left : left + w])
    return resize(crop, (size, size), interpolation, antialias)


def _without_ends(pixels: Tensor, shorter: int) -> tuple[Tensor, int, int]:
    """The middle of a thin image: more than the square of its shorter side and the filter's reach.

    Both middles lie on each other, and the scale is the whole image's but for the part of a px to
    which its longer side is rounded.

    Args:
        pixels: uint8 [h, w, 3].

    Returns:
        the part, and the height and width to which it is to be resized.
    """
    height, width = pixels.shape[:2]
    side, longer = min(height, width), max(height, width)
    length = 5 * side
    if (longer - length) % 2:  # else it would lie half a px beside the middle
        length += side if side % 2 else 1
    first, resized = (longer - length) // 2, round(length * shorter / side)
    if height > width:
        return pixels[first : first + length], resized, shorter
    return pixels[:, first : first + length], shorter, resized


def reduction(side: int, wanted: int) -> int:
    """Largest of 8, 4, 2, 1 by which `side` px can shrink and still be `wanted` px."""
    return next((r for r in (8, 4, 2) if side >= r * wanted), 1)


def resize(pixels: Tensor, size: tuple[int, int], interpolation: str, antialias: bool) -> Tensor:
    """uint8 [h, w, 3] -> uint8 [*size, 3]; torch's native uint8 kernels, as torchvision v2 uses."""
    if pixels.shape[:2] == size:
        return pixels
    # Contiguous, or the kernels fall back to planar output that must be transposed again.
    x = pixels.contiguous()[None].permute(0, 3, 1, 2)  # [1, 3, h, w], channels last in memory
    if interpolation == "nearest":
        x = F.interpolate(x, size, mode="nearest")
    else:
        x = F.interpolate(x, size, mode=interpolation, align_corners=False, antialias=antialias)
    return x[0].permute(1, 2, 0)


def _randaugment(augment: AugmentConfig) -> torch.nn.Module | None:
    if augment.policy != "randaugment":
        return None
    from torchvision.transforms import v2  # takes seconds, and most runs do without

    return v2.RandAugment(augment.randaugment_ops, augment.randaugment_magnitude)


def key_of(seed: int, sample_id: str, view: int) -> int:
    """What decides a view, 63 bits."""
    digest = hashlib.blake2b(f"{seed}/{sample_id}/{view}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _middle(pixels: Tensor, height: int, width: int) -> Tensor:
    """[h, w, 3] -> [height, width, 3]."""
    top, left = round((pixels.shape[0] - height) / 2), round((pixels.shape[1] - width) / 2)
    return pixels[top : top + height, left : left + width]
