"""Several images with all that is drawn on them as one: mixup and mosaic."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv
from torchvision.tv_tensors import Image, Mask

from downstream.detection.data.geometry import (
    MEAN_COLOUR,
    Sample,
    make_boxes,
    make_points,
    pad,
    within,
)


def mix(first: Sample, second: Sample, ratio: float) -> Sample:
    """Blend two images, `ratio` of the first, upper left corners together, on a black canvas that
    holds both; the boxes of both stay (Zhang et al. 2019, "Bag of freebies for training object
    detection", section 3.1; PaddleDetection `Mixup`, whose gt_score is `weights`)."""
    size = (max(first.size[0], second.size[0]), max(first.size[1], second.size[1]))
    blend = torch.zeros(3, *size)
    for part, share in ((first, ratio), (second, 1 - ratio)):
        height, width = part.size
        blend[:, :height, :width] += share * part.image.as_subclass(Tensor)
    together = _joined(blend.round().to(torch.uint8), [pad(x, 0, 0, size) for x in (first, second)])
    together.weights[: len(first.labels)] *= ratio
    together.weights[len(first.labels) :] *= 1 - ratio
    return together


def mosaic(samples: Sequence[Sample], centre: tuple[int, int], side: int) -> Sample:
    """Four images around a point, a corner of each at it, on a canvas of MEAN_COLOUR (Bochkovskiy
    et al. 2020, "YOLOv4", arXiv:2004.10934, section 3.3). What lies outside of the canvas is cut
    off, as by `within`.

    Args:
        samples: upper left, upper right, lower left and lower right, each as large as it is to be.
        centre: y and x in px of the canvas, or beyond it.
        side: of the canvas, a square, in px.
    """
    colour = torch.tensor(MEAN_COLOUR).to(torch.uint8)
    canvas = colour[:, None, None].repeat(1, side, side)
    y, x = centre
    parts = []
    for i, sample in enumerate(samples):
        (height, width), below, right = sample.size, i >= 2, i % 2
        # One that is wholly outside lies at the edge: torchvision's crop is wrong beyond.
        top = min(side, max(-height, y if below else y - height))
        left = min(side, max(-width, x if right else x - width))
        rows = slice(max(0, top), max(0, top + height))
        columns = slice(max(0, left), max(0, left + width))
        crop = partial(tv.crop, top=-top, left=-left, height=side, width=side)
        parts.append(within(sample, crop))  # of what is outside of the image torchvision makes 0
        canvas[:, rows, columns] = parts[-1].image.as_subclass(Tensor)[:, rows, columns]
    return _joined(canvas, parts)


def _joined(image: Tensor, parts: Sequence[Sample]) -> Sample:
    """All that is drawn on parts of one size, on `image`, uint8 [3, h, w], of that size."""
    size = (image.shape[-2], image.shape[-1])
    boxes = torch.cat([x.boxes.as_subclass(Tensor) for x in parts])
    points = [x.keypoints.as_subclass(Tensor) for x in parts if x.keypoints is not None]
    visibility = [x.visibility for x in parts if x.visibility is not None]
    masks = [x.masks.as_subclass(Tensor) for x in parts if x.masks is not None]
    return Sample(
        Image(image),
        make_boxes(boxes, size),
        torch.cat([x.labels for x in parts]),
        torch.cat([x.weights for x in parts]),
        make_points(torch.cat(points), size) if points else None,
        torch.cat(visibility) if points else None,
        Mask(torch.cat(masks)) if masks else None,
    )
