"""From one image to class probabilities: at once, in windows, at several sizes, mirrored.

Probabilities are averaged, not logits, over windows, mirror images and sizes alike, as in
hszhao/semseg `tool/test.py` (MIT), the code of PSPNet (Zhao et al. 2017, arXiv 1612.01105).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from downstream.segmentation.heads.segmenter import resize
from ssld.common.errors import InputError

OVERLAP = 2 / 3
"""Stride of the windows in sides of one (hszhao/semseg `scale_process`, `stride_rate=2/3`)."""

Size = tuple[int, int]
"""height, width in px."""


def predict(
    network: nn.Module,
    image: Tensor,
    *,
    crop: Size | None = None,
    stride: Size | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Tensor:
    """Class probabilities of every pixel.

    Args:
        network: float [1, 3, h, w] -> logits [1, classes, h, w] for any h and w (a `Segmenter` pads
            what is no multiple of its stride and cuts its logits back), in eval mode.
        image: normalised, float [3, h, w], on the network's device.
        crop: height and width of the windows; None: the whole image at once.
        stride: distance of the windows; by default two thirds of `crop`, rounded up.
        scales: factors of height and width at which the image is seen.
        flip: see it mirrored, too.

    Returns:
        float32 [classes, h, w]: the mean over windows, then over scales and mirror images.

    Raises:
        InputError: windows that leave pixels out.
    """
    return predict_both(network, image, crop=crop, stride=stride, scales=scales, flip=flip)[0]


@torch.no_grad()
def predict_both(
    network: nn.Module,
    image: Tensor,
    *,
    crop: Size | None,
    stride: Size | None,
    scales: Sequence[float],
    flip: bool,
) -> tuple[Tensor, Tensor]:
    """See `predict`: the mean over all scales and mirror images, and what is seen in one view
    alone, the scale nearest to 1, not mirrored. With one view both are the same object."""
    assert not network.training, "networks are evaluated in eval mode"
    size = (int(image.shape[-2]), int(image.shape[-1]))
    total, views, one = torch.zeros((), dtype=torch.float64), 0, None
    nearest = min(scales, key=lambda scale: abs(math.log(scale)))
    for scale in scales:
        scaled = resize(image[None], _scaled(size, scale))[0]
        for mirrored in (False, True) if flip else (False,):
            seen = _probabilities(network, scaled.flip(-1) if mirrored else scaled, crop, stride)
            seen = resize((seen.flip(-1) if mirrored else seen)[None], size)[0]
            if scale == nearest and not mirrored:
                one = seen.float()
            total, views = total + seen, views + 1
    assert one is not None
    return ((total / views).float() if views > 1 else one), one


def windows(size: Size, crop: Size, stride: Size | None = None) -> list[tuple[int, int, int, int]]:
    """Windows that cover an image: top, left, height, width in px, row by row.

    They are `stride` apart, but the last of a row or column is moved back into the image, and where
    the image is smaller than `crop`, the window is (semseg `scale_process`, PaddleSeg
    `slide_inference`).

    Raises:
        InputError: a stride that is not from 1 to the side of the window.
    """
    height, width = (min(pair) for pair in zip(size, crop, strict=True))
    steps = stride or (math.ceil(crop[0] * OVERLAP), math.ceil(crop[1] * OVERLAP))
    if not all(1 <= step <= side for step, side in zip(steps, crop, strict=True)):
        raise InputError(
            f"stride {tuple(steps)} leaves pixels out between windows of {crop[0]} x {crop[1]} px; "
            "give heights and widths from 1 to those of the window"
        )
    return [
        (top, left, height, width)
        for top in _starts(size[0], height, steps[0])
        for left in _starts(size[1], width, steps[1])
    ]


def _starts(length: int, window: int, step: int) -> list[int]:
    count = math.ceil((length - window) / step) + 1
    return [min(i * step, length - window) for i in range(count)]


def _probabilities(
    network: nn.Module, image: Tensor, crop: Size | None, stride: Size | None
) -> Tensor:
    """float [3, h, w] -> float64 [classes, h, w]: the mean over the windows."""
    size = (int(image.shape[-2]), int(image.shape[-1]))
    total, count = None, image.new_zeros(size, dtype=torch.float64)
    for top, left, height, width in windows(size, crop or size, stride if crop else size):
        part = (..., slice(top, top + height), slice(left, left + width))
        # In float64, or a pixel's last digits would depend on its place in the window (exp of whole
        # vectors differs from that of the rest) and on the number of windows.
        seen = network(image[part][None])[0].double().softmax(0)  # [classes, height, width]
        if total is None:
            total = seen.new_zeros((len(seen), *size), dtype=torch.float64)
        total[part] += seen
        count[part] += 1
    assert total is not None
    return total.div_(count)


def _scaled(size: Size, scale: float) -> Size:
    """Rounded as PaddleSeg `aug_inference` does: half up; at least a pixel."""
    height, width = (max(1, int(side * scale + 0.5)) for side in size)
    return height, width
