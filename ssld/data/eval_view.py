"""How a network wants to see images when it is evaluated, as timm's `create_transform` does it for
the `crop_mode` and `crop_pct` of its weights (timm/data/transforms_factory.py, Apache-2.0).

    center   the shorter side to size / crop_pct, the middle of it
    squash   both sides to size / crop_pct, the middle of it
    border   the longer side to size / crop_pct, the middle, and the mean colour around it
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from ssld.data.decode import decode, image_size
from ssld.data.transforms import EvalView, reduction, resize

MAX_ASPECT = 8
"""How many times longer than wide the part of an image is that is resized in mode center."""


class Seen(Protocol):
    """What a `Classifier` says of its preprocessing."""

    input_size: int
    crop_pct: float
    crop_mode: str
    interpolation: str
    mean: tuple[float, ...]


def eval_view(network: Seen, size: int | None = None) -> EvalView:
    """The evaluation view of a network, at its own size or another (px)."""
    side = size or network.input_size
    if network.crop_mode == "center" and network.crop_pct <= 1:
        return EvalView(side, network.crop_pct, network.interpolation)
    return FramedView(network, side)


class FramedView(EvalView):
    """Modes squash and border, and crops that are larger than what is resized (crop_pct above 1):
    there is black around it then."""

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
        """Height and width in px before the crop."""
        side = math.floor(self.size / self.crop_pct)
        if self.crop_mode == "squash":
            return side, side
        if self.crop_mode == "border":
            ratio = max(height, width) / side
            return max(1, round(height / ratio)), max(1, round(width / ratio))
        if height <= width:
            return side, int(side * width / height)
        return int(side * height / width), side


def _middle(pixels: Tensor, height: int, width: int) -> Tensor:
    """[h, w, 3] -> [height, width, 3]."""
    top, left = round((pixels.shape[0] - height) / 2), round((pixels.shape[1] - width) / 2)
    return pixels[top : top + height, left : left + width]
