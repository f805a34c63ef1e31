"""Geometry and colour of an image with boxes, keypoints and masks, through torchvision's tv_tensors
with these traps mended (torchvision 0.29):

- its flip maps a keypoint x to W - 1 - x but a box to W - x, and a left eye stays a left eye;
- its `RandomIoUCrop` divides by zero on images under 4 px, and leaves it to another transform to
  remove boxes;
- its nearest pixel, the default for masks, is up to half a pixel off from where an image's bilinear
  ones are: `nearest-exact` is not;
- its AutoAugment and RandAugment raise on boxes: `downstream/dense/operations.py` does not;
- keypoints that were not labeled (visibility 0) move like all others: here they stay at 0.

Nothing here reads a global random state: what is drawn is drawn from the `draw` that is passed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv
from torchvision.tv_tensors import BoundingBoxes, Image, KeyPoints, Mask

from downstream.dense.operations import resize_mask

MEAN_COLOUR = (124.0, 116.0, 104.0)
"""ImageNet's mean in RGB, 0 to 255, around a zoomed-out image (Liu et al. 2016, SSD, section 3.6;
yolov3_reader.yml)."""
LEAST_SIDE_PX = 1.0
"""Of a box in a training view."""

OVERLAPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, None)
"""Least IoU of a crop with one of the boxes; None keeps the image (torchvision `RandomIoUCrop`;
PaddleDetection `RandomCrop`; weiliu89/caffe `ssd_coco.py` has 0 as "no constraint")."""
CROP_SCALE, CROP_ASPECT = (0.3, 1.0), (0.5, 2.0)
"""Of each side, and width to height (same sources)."""
TRIALS = 40
"""torchvision `RandomIoUCrop`."""

BRIGHTNESS, CONTRAST, SATURATION, HUE = (0.875, 1.125), (0.5, 1.5), (0.5, 1.5), (-0.05, 0.05)
"""torchvision `RandomPhotometricDistort`: SSD's 32 of 255 and 18 of 360 degrees. Its swap of
channels is left out, as `ssd_coco.py` has it at 0 and PaddleDetection off."""


@dataclass(frozen=True)
class Sample:
    """An image and what is drawn on it. All but `image` may be None or empty."""

    image: Image
    """uint8 [3, h, w]."""
    boxes: BoundingBoxes
    """float [n, 4], xyxy."""
    labels: Tensor
    """int64 [n]."""
    weights: Tensor
    """float32 [n]: the share of the box's own image in this one; 1 without mixup."""
    keypoints: KeyPoints | None = None
    """float [n, k, 2], continuous px: pixel i's centre is i + .5."""
    visibility: Tensor | None = None
    """float [n, k]: 0 where a keypoint is not labeled, which has x = y = 0."""
    masks: Mask | None = None
    """uint8 [n, h, w]: 1 where an object is. A box stays what the geometry makes of it, also where
    a crop leaves less of the mask."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in px."""
        return self.image.shape[-2], self.image.shape[-1]


def make_sample(
    image: Tensor,
    xyxy: Tensor,
    labels: Tensor,
    keypoints: Tensor | None = None,
    masks: Tensor | None = None,
) -> Sample:
    """
    Args:
        image: uint8 [3, h, w].
        xyxy: float [n, 4] px.
        labels: int64 [n].
        keypoints: float [n, k, 3]: x, y, visibility.
        masks: uint8 [n, h, w], 0 or 1.
    """
    size = (image.shape[-2], image.shape[-1])
    return Sample(
        Image(image),
        make_boxes(xyxy, size),
        labels,
        torch.ones(len(labels)),
        None if keypoints is None else make_points(keypoints[..., :2], size),
        None if keypoints is None else keypoints[..., 2],
        None if masks is None else Mask(masks),
    )


def flip(sample: Sample, pairs: Sequence[tuple[int, int]]) -> Sample:
    """Mirror left and right; `pairs` of keypoints change places: a left eye becomes a right one."""
    points, visibility = sample.keypoints, sample.visibility
    if points is not None and visibility is not None:
        order = list(range(points.shape[1]))
        for a, b in pairs:
            order[a], order[b] = b, a
        mirrored = points.as_subclass(Tensor)[:, order].clone()
        # Continuous px: a mirror at the middle, where torchvision's has W - 1 - x.
        mirrored[..., 0] = sample.size[1] - mirrored[..., 0]
        points, visibility = make_points(mirrored, sample.size), visibility[:, order]
    flipped = _apply(sample, tv.horizontal_flip)
    return _at_zero(replace(flipped, keypoints=points, visibility=visibility))


def resize(sample: Sample, size: tuple[int, int]) -> Sample:
    """To (height, width), bilinear with a low-pass filter; masks by the nearest pixel."""

    def transform(part: Any) -> Any:
        if isinstance(part, Mask):
            return resize_mask(part, size)
        return tv.resize(part, list(size), antialias=True)

    return _at_zero(_apply(sample, transform))


def pad(sample: Sample, top: int, left: int, size: tuple[int, int]) -> Sample:
    """Onto a canvas of MEAN_COLOUR (masks: 0) of `size` (height, width)."""
    height, width = sample.size
    padding = [left, top, size[1] - left - width, size[0] - top - height]

    def transform(part: Any) -> Any:
        return tv.pad(part, padding, fill=0 if isinstance(part, Mask) else list(MEAN_COLOUR))

    return _at_zero(_apply(sample, transform))


def crop(sample: Sample, top: int, left: int, size: tuple[int, int]) -> Sample:
    """Cut out `size` (height, width). Boxes whose centre is outside go (SSD section 2.2, "Data
    augmentation"), the others are cut; keypoints outside become unlabeled."""
    centre = (sample.boxes.as_subclass(Tensor)[:, :2] + sample.boxes.as_subclass(Tensor)[:, 2:]) / 2
    low, high = centre.new_tensor([left, top]), centre.new_tensor([left + size[1], top + size[0]])
    sample = keep(sample, ((low < centre) & (centre < high)).all(1))
    return within(sample, lambda part: tv.crop(part, top, left, *size))


def within(sample: Sample, transform: Callable[[Any], Any]) -> Sample:
    """After one of torchvision's functionals, without what left the image: boxes are cut, and go if
    nothing is left of them; keypoints outside become unlabeled."""
    uncut = make_boxes(sample.boxes.as_subclass(Tensor), sample.size, clamping_mode=None)
    moved = _apply(replace(sample, boxes=uncut), transform)
    boxes = moved.boxes.as_subclass(Tensor)
    limits = boxes.new_tensor([moved.size[1], moved.size[0]])
    boxes = boxes.clamp(min=0).minimum(limits.repeat(2))
    moved = replace(moved, boxes=make_boxes(boxes, moved.size))
    if moved.keypoints is not None and moved.visibility is not None:
        points = moved.keypoints.as_subclass(Tensor)
        visible = ((points >= 0) & (points <= limits)).all(-1)
        moved = replace(moved, visibility=moved.visibility * visible)
    return keep(_at_zero(moved), (boxes[:, 2:] > boxes[:, :2]).all(1))


def keep(sample: Sample, chosen: Tensor) -> Sample:
    """Only some boxes, bool [n], with all that belongs to them."""
    points = sample.keypoints
    return replace(
        sample,
        boxes=make_boxes(sample.boxes.as_subclass(Tensor)[chosen], sample.size),
        labels=sample.labels[chosen],
        weights=sample.weights[chosen],
        keypoints=None
        if points is None
        else make_points(points.as_subclass(Tensor)[chosen], sample.size),
        visibility=None if sample.visibility is None else sample.visibility[chosen],
        masks=None if sample.masks is None else Mask(sample.masks.as_subclass(Tensor)[chosen]),
    )


def in_square(sample: Sample, size: tuple[int, int], side: int, draw: random.Random) -> Sample:
    """Resized to `size` (height, width), and of what is larger than `side` px a drawn part
    (tensorflow/tpu models/official/detection/utils/input_utils.py, `resize_and_crop_image`). Boxes
    of which any part is left stay, as there: of large objects in half of an image the centre is
    often outside."""
    height, width = (min(side, length) for length in size)
    top, left = draw.randint(0, size[0] - height), draw.randint(0, size[1] - width)
    return within(resize(sample, size), lambda part: tv.crop(part, top, left, height, width))


def drop_small(sample: Sample, side: float = LEAST_SIDE_PX) -> Sample:
    """Without boxes that have a side under `side` px: nothing to learn, NaN in some losses
    (torchvision `SanitizeBoundingBoxes` has 1 px, too). And without those of whose mask no pixel is
    left: that nothing is in a box is wrong (detectron2 `filter_empty_instances`)."""
    boxes = sample.boxes.as_subclass(Tensor)
    chosen = (boxes[:, 2:] - boxes[:, :2] >= side).all(1)
    if sample.masks is not None:
        chosen &= (sample.masks.as_subclass(Tensor) > 0).flatten(1).any(1)
    return keep(sample, chosen)


def expand(sample: Sample, draw: random.Random, largest: float) -> Sample:
    """Put the image somewhere on a canvas of 1 to `largest` times its sides, every other time (SSD
    section 3.6; torchvision `RandomZoomOut`)."""
    if draw.random() < 0.5:
        return sample
    ratio = draw.uniform(1, largest)
    height, width = (int(side * ratio) for side in sample.size)
    top = draw.randint(0, height - sample.size[0])
    return pad(sample, top, draw.randint(0, width - sample.size[1]), (height, width))


def crop_by_overlap(sample: Sample, draw: random.Random) -> Sample:
    """Cut out a part that overlaps one of the boxes by a drawn IoU (SSD section 2.2); without boxes
    the image stays."""
    boxes = sample.boxes.as_subclass(Tensor).double().numpy()
    window = crop_window(draw, sample.size, boxes) if len(boxes) else None
    return sample if window is None else crop(sample, window[0], window[1], window[2:])


def crop_window(
    draw: random.Random, size: tuple[int, int], boxes: np.ndarray
) -> tuple[int, int, int, int] | None:
    """Top, left, height, width of SSD's crop, None to keep the image.

    Args:
        size: height and width in px.
        boxes: float64 [n, 4], xyxy.
    """
    height, width = size
    while (least := draw.choice(OVERLAPS)) is not None:
        for _ in range(TRIALS):
            w, h = int(width * draw.uniform(*CROP_SCALE)), int(height * draw.uniform(*CROP_SCALE))
            if not (w and h and CROP_ASPECT[0] <= w / h <= CROP_ASPECT[1]):
                continue
            left, top = draw.randint(0, width - w), draw.randint(0, height - h)
            window = np.array([left, top, left + w, top + h], np.float64)
            centre = (boxes[:, :2] + boxes[:, 2:]) / 2
            inside = ((window[:2] < centre) & (centre < window[2:])).all(1)
            if inside.any() and _overlap(boxes[inside], window).max() >= least:
                return top, left, h, w
    return None


def _overlap(boxes: np.ndarray, window: np.ndarray) -> np.ndarray:
    """IoU of [n, 4] boxes with one, [n]."""
    sides = np.minimum(boxes[:, 2:], window[2:]) - np.maximum(boxes[:, :2], window[:2])
    both = sides.clip(min=0).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return both / (areas + (window[2:] - window[:2]).prod() - both)


def distort(sample: Sample, draw: random.Random, probability: float) -> Sample:
    """SSD's photometric distortion: each with `probability`, contrast first or last."""
    image = sample.image
    steps: list[tuple[Callable[..., Any], tuple[float, float]]] = [
        (tv.adjust_brightness, BRIGHTNESS),
        (tv.adjust_saturation, SATURATION),
        (tv.adjust_hue, HUE),
    ]
    steps.insert(draw.choice((1, 3)), (tv.adjust_contrast, CONTRAST))
    for adjust, limits in steps:
        if draw.random() < probability:
            image = adjust(image, draw.uniform(*limits))
    return replace(sample, image=Image(image))


def _apply(sample: Sample, transform: Callable[[Any], Any]) -> Sample:
    """One of torchvision's functionals on all that it moves."""
    points, masks = sample.keypoints, sample.masks
    return replace(
        sample,
        image=transform(sample.image),
        boxes=transform(sample.boxes),
        keypoints=None if points is None else _move_points(points, transform),
        masks=None if masks is None else transform(masks),
    )


def _move_points(points: KeyPoints, transform: Callable[[Any], Any]) -> KeyPoints:
    """As boxes without area: torchvision 0.23 puts keypoints that left the image on its edge, as if
    they were still seen, and only for boxes can that be turned off."""
    corners = points.as_subclass(Tensor).reshape(-1, 2).repeat(1, 2)
    moved = transform(make_boxes(corners, points.canvas_size, clamping_mode=None))
    places = moved.as_subclass(Tensor)[:, :2].reshape(points.shape)
    return make_points(places, moved.canvas_size)


def make_boxes(
    values: Tensor, size: tuple[int, int], clamping_mode: str | None = "soft"
) -> BoundingBoxes:
    """Of float [n, 4], xyxy, on an image of `size` (height, width).

    Args:
        clamping_mode: whether torchvision's functionals cut them to the image; None: they do not.
    """
    make: Any = BoundingBoxes  # whose `__new__` takes more than Tensor's `__init__` says
    return make(values, format="XYXY", canvas_size=size, clamping_mode=clamping_mode)


def make_points(values: Tensor, size: tuple[int, int]) -> KeyPoints:
    """Of float [n, k, 2], x and y, on an image of `size` (height, width)."""
    make: Any = KeyPoints
    return make(values, canvas_size=size)


def _at_zero(sample: Sample) -> Sample:
    """With the keypoints that are not labeled back at 0."""
    if sample.keypoints is None or sample.visibility is None:
        return sample
    points = sample.keypoints.as_subclass(Tensor) * (sample.visibility > 0)[..., None]
    return replace(sample, keypoints=make_points(points, sample.size))
