"""Operations of a policy on an image with boxes, keypoints and masks; which are drawn says
`downstream/dense/policies.py`."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.tv_tensors import Image, Mask

from downstream.dense import operations
from downstream.dense.policies import IN_BOXES, IN_BOXES_LESS, Operation
from downstream.detection.data.geometry import Sample, keep, make_points, within


def operate(sample: Sample, operation: Operation, draw: random.Random) -> Sample:
    """After an operation. Boxes are the hulls of their moved corners, cut to the image; what leaves
    it goes; what is cut out keeps its labels."""
    name, strength = operation.name, operation.strength
    if name == IN_BOXES:
        return move_in_boxes(sample, strength, operation.probability / IN_BOXES_LESS, draw)
    if name == "cutout":
        return replace(sample, image=operations.cutout(sample.image, strength, draw))
    if name in operations.COLOURS:
        return replace(sample, image=operations.recolour(sample.image, name, strength))
    if strength == 0:
        return sample
    return within(sample, partial(operations.move, name=name, strength=strength))


def move_in_boxes(
    sample: Sample, strength: float, probability: float, draw: random.Random
) -> Sample:
    """With `probability` for each box, move what is in it up or down, all in one direction; grey
    comes in. The box stays (tensorflow/tpu `translate_y_only_bboxes`), and goes if nothing is left
    of what it held. Keypoints and masks in it move, too."""
    down = round(operations.SHIFT_IN_BOX * strength * max(sample.size))
    kept = torch.ones(len(sample.labels), dtype=torch.bool)
    for i, box in enumerate(sample.boxes.as_subclass(Tensor).round().int().tolist()):
        if draw.random() < probability and down:
            sample = _move_part(sample, box, down)
            kept[i] = abs(down) < box[3] - box[1]
    return sample if kept.all() else keep(sample, kept)


def _move_part(sample: Sample, box: list[int], down: int) -> Sample:
    """With all that is in a box, xyxy in whole px, so many px further down in it."""
    image = Image(_shifted(sample.image, box, down, operations.GREY))
    masks = None if sample.masks is None else Mask(_shifted(sample.masks, box, down, 0))
    moved = replace(sample, image=image, masks=masks)
    if sample.keypoints is None or sample.visibility is None:
        return moved
    points = sample.keypoints.as_subclass(Tensor)
    low, high = points.new_tensor(box[:2]), points.new_tensor(box[2:])
    inside = ((points >= low) & (points <= high)).all(-1)
    shifted = points + inside[..., None] * points.new_tensor([0, down])
    left = inside & ~((shifted >= low) & (shifted <= high)).all(-1)
    visibility = sample.visibility * ~left
    points = make_points(shifted * (visibility > 0)[..., None], sample.size)
    return replace(moved, keypoints=points, visibility=visibility)


def _shifted(pixels: Tensor, box: list[int], down: int, fill: float) -> Tensor:
    """[..., h, w] with the part in a box further down in it, and `fill` where it was."""
    left, top, right, bottom = box
    pixels = pixels.as_subclass(Tensor).clone()
    part = pixels[..., top:bottom, left:right]
    by = max(-part.shape[-2], min(part.shape[-2], down))
    pixels[..., top:bottom, left:right] = F.pad(part, (0, 0, by, -by), value=fill)
    return pixels
