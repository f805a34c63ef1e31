"""What a detector finds in an image, seen once or in several views (Data Distillation,
arXiv:1712.04440, sections 4 and 6.1).

A view is the image at one scale, as it is or mirrored. Boxes of all views are brought back to px of
the image and merged (`merging.py`). Of keypoints and masks the boxes are those of one view: the
scale nearest to 1, not mirrored. Their heat maps and masks are seen in every view in the frame of
those boxes, and averaged as probabilities (paper, section 4).

Views are seen one by one: what is found in one does not depend on the others in a batch, so that
the one view gives the same bits alone and among others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from downstream.dense.config import MAX_SIDE_PX
from downstream.detection.config import BoxAugmentConfig, BoxTestConfig
from downstream.detection.data.transforms import view_size
from downstream.detection.heads.detector import Detections
from downstream.detection.merging import merge
from ssld.common.errors import InputError


@dataclass(frozen=True)
class View:
    """An image as the network sees it."""

    pixels: Tensor
    """uint8 [h, w, 3]."""
    scale: tuple[float, float]
    """px of it for one of the image, across and down."""
    mirrored: bool = False

    @property
    def images(self) -> Tensor:
        """uint8 [1, h, w, 3]."""
        return self.pixels[None]

    @property
    def sizes(self) -> Tensor:
        """int64 [1, 2]."""
        return torch.tensor([self.pixels.shape[:2]], device=self.pixels.device)

    def mirror(self) -> View:
        """The same, mirrored: exactly, as it is not resized anew."""
        return View(self.pixels.flip(1), self.scale, not self.mirrored)

    def leave(self, found: Detections) -> Detections:
        """Boxes and keypoints of this view in px of the image."""
        boxes = found["boxes"]
        boxes = self._mirrored(boxes) if self.mirrored else boxes
        left = {**found, "boxes": boxes / boxes.new_tensor(self.scale * 2)}
        if "keypoints" in found:
            assert not self.mirrored, "keypoints are averaged in the frame of a box"
            points = found["keypoints"]
            left["keypoints"] = points / points.new_tensor([*self.scale, 1])
        return left

    def enter(self, boxes: Tensor) -> Tensor:
        """Boxes xyxy px of the image in px of this view, within it."""
        boxes = boxes * boxes.new_tensor(self.scale * 2)
        boxes = self._mirrored(boxes) if self.mirrored else boxes
        height, width = self.pixels.shape[:2]
        return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height] * 2))

    def _mirrored(self, boxes: Tensor) -> Tensor:
        x1, y1, x2, y2 = boxes.unbind(-1)
        width = self.pixels.shape[1]
        return torch.stack([width - x2, y1, width - x1, y2], dim=-1)


def predict(
    model: Any, pixels: Tensor, augment: BoxAugmentConfig, test: BoxTestConfig
) -> Detections:
    """What the detector finds in one image, in all views of it.

    Args:
        model: a `downstream.detection.model.DetectionModel` in eval mode.
        pixels: uint8 [h, w, 3], the upright image, where the model is.
        augment: says the size of a view.
        test: says the views; with one, the result is what the network says of it.

    Returns:
        as of `downstream/detection/networks.py`, in px of the image.

    Raises:
        InputError: a scale that is too large for the image, or a prediction that is not finite.
    """
    return predict_both(model, pixels, augment, test)[0]


@torch.no_grad()
def predict_both(
    model: Any, pixels: Tensor, augment: BoxAugmentConfig, test: BoxTestConfig
) -> tuple[Detections, Detections]:
    """See `predict`: what is found in all views, and in the one view alone, the scale nearest to 1,
    not mirrored. With one view both are the same object."""
    assert not model.training, "networks are evaluated in eval mode"
    seen = views(pixels, augment, test)
    view = next(seen)
    found, parts = model.find(view.images, view.sizes)
    one = view.leave(_finite(found))
    if test.views == 1:
        return one, one
    if parts is None:
        others = (x.leave(_finite(model.find(x.images, x.sizes)[0])) for x in seen)
        return merge([one, *others], test), one
    if not len(one["boxes"]):
        return one, one
    mean = _probabilities(found, parts)  # in the frame of each box
    for other in seen:
        inside = {"boxes": other.enter(one["boxes"]), "labels": one["labels"]}
        logits = model.parts(other.images, other.sizes, [inside])[0]
        mean += _as_in_the_image(_probabilities(found, logits), other, found, model)
    mean /= test.views
    logits = mean.log() if "keypoints" in found else mean.logit()
    return view.leave(_finite(model.finish(found, logits))), one


def _probabilities(found: Detections, parts: Tensor) -> Tensor:
    """Of logits of keypoints, [k, K, m, m]: of each cell to be the keypoint. Of masks, [k, m, m]:
    of each cell to be of the object."""
    if "keypoints" in found:
        return parts.flatten(2).softmax(2).view_as(parts)
    return parts.sigmoid()


def _as_in_the_image(probabilities: Tensor, view: View, found: Detections, model: Any) -> Tensor:
    """From the frame of boxes in a view to that in the image: cell j of m is cell m - 1 - j of the
    mirrored box, where a left eye looks like a right one."""
    if not view.mirrored:
        return probabilities
    if "keypoints" in found:
        order = list(range(probabilities.shape[1]))
        for a, b in model.keypoints.flip_pairs:
            order[a], order[b] = b, a
        probabilities = probabilities[:, order]
    return probabilities.flip(-1)


def _finite(found: Detections) -> Detections:
    if not all(x.isfinite().all() for x in found.values()):
        raise InputError(
            "what was predicted is not finite; the network has diverged, train it with a lower "
            "learning rate"
        )
    return found


def views(pixels: Tensor, augment: BoxAugmentConfig, test: BoxTestConfig) -> Iterator[View]:
    """The views of an image, made one after the other; the first is the one that stands for all.

    Raises:
        InputError: a scale makes a side of more than `MAX_SIDE_PX`.
    """
    height, width = pixels.shape[:2]
    for factor in sorted(test.scales, key=lambda x: abs(math.log(x))):
        size = scaled_size((height, width), augment, factor)
        resized = tv.resize(pixels.permute(2, 0, 1), list(size), antialias=True).permute(1, 2, 0)
        view = View(resized, (size[1] / width, size[0] / height))
        yield view
        if test.flip:
            yield view.mirror()


def scaled_size(size: tuple[int, int], augment: BoxAugmentConfig, factor: float) -> tuple[int, int]:
    """Height and width of the view of an image of `size` at one of `test.scales`.

    Raises:
        InputError: a side of more than `MAX_SIDE_PX`.
    """
    height, width = view_size(size, augment.test_size, augment, factor)
    if factor > 1 and max(height, width) > MAX_SIDE_PX:
        raise InputError(
            f"test.scales: {factor:g} makes a view of {height} x {width} px (height, width) of an "
            f"image of {size[0]} x {size[1]}, and {MAX_SIDE_PX} is the most; give smaller factors, "
            "or a smaller augment.longest"
        )
    return height, width
