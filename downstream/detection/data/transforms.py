"""Views of images with boxes. A training view is a pure function of (seed, sample id, view number),
and its size, where all of a batch have one, of (seed, batch number): no global random state decides
anything (see `ssld/data/transforms.py`).

Order of the steps: mosaic, mixup, colour, expand, crop, flip, resize (PaddleDetection
`configs/yolov3/_base_/yolov3_reader.yml`), and before flip and resize the policy (tensorflow/tpu
models/official/detection/dataloader/retinanet_parser.py).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from downstream.dense.outlines import Rle
from downstream.dense.outlines import decode as decode_masks
from downstream.dense.policies import draw_operations
from downstream.detection.config import BoxAugmentConfig
from downstream.detection.data import geometry
from downstream.detection.data.boxes import BoxSource
from downstream.detection.data.mixing import mix, mosaic
from downstream.detection.data.operations import operate
from ssld.data.decode import Unreadable, decode
from ssld.data.transforms import key_of

Target = dict[str, Any]
FITTED = BoxAugmentConfig(resize="longer")
"""How images of a mosaic get their size: they keep their aspect."""


class TrainBoxView:
    """Args:
    augment: ranges and probabilities.
    seed: the run's.
    """

    def __init__(self, augment: BoxAugmentConfig, seed: int) -> None:
        self.augment = augment
        self.seed = seed

    def __call__(
        self, source: BoxSource, index: int, view: int, batch_number: int
    ) -> tuple[Tensor, Target]:
        """View number `view` (0 in the first epoch) of an image, for batch `batch_number`.

        Returns:
            uint8 [h, w, 3] and {"boxes": float32 [n, 4] xyxy in px of the view, each side at least
            1 px; "labels": int64 [n]; "weights": float32 [n], the share of the box's own image in
            a mixed one, by which its loss counts, else 1; "size": height and width of the image in
            px; "keypoints", where the source has them: float32 [n, k, 3], x, y, visibility;
            "masks", where it has them: uint8 [n, h, w], 0 or 1}. Crowd boxes are left out; n may be
            0.

        Raises:
            Unreadable, OSError: the image, or one that is mixed in, cannot be read; says which.
        """
        augment = self.augment
        draw = random.Random(key_of(self.seed, source.sample_id(index), view))
        sample, scale = load(source, index), augment.scale
        in_mosaic = _is_on(augment.mosaic, augment.mosaic_epochs, view)
        in_mosaic = in_mosaic and draw.random() < augment.mosaic
        if in_mosaic:
            sample, scale = self._mosaic(source, sample, draw, batch_number), (1.0, 1.0)
        if _is_on(augment.mixup, augment.mixup_epochs, view):
            partner = _load_partner(source, draw)
            ratio = draw.betavariate(augment.mixup, augment.mixup)
            if in_mosaic:
                partner = _fitted(partner, sample.size[0])
            sample = mix(sample, partner, ratio)
        if augment.colour:
            sample = geometry.distort(sample, draw, augment.colour)
        if augment.expand > 1:
            sample = geometry.expand(sample, draw, augment.expand)
        if augment.crop:
            sample = geometry.crop_by_overlap(sample, draw)
        for operation in draw_operations(augment, draw, boxes=True):
            sample = operate(sample, operation, draw)
        pairs = () if source.keypoints is None else source.keypoints.flip_pairs
        sample = self.flipped_and_resized(sample, draw, batch_number, pairs, scale=scale)
        if augment.resize == "longer":  # MEAN_COLOUR right of and below what is smaller, as there
            side = self.batch_size_px(batch_number)
            sample = geometry.pad(sample, 0, 0, (side, side))
        return _finish(geometry.drop_small(sample), source.image_size(index))

    def flipped_and_resized(
        self,
        sample: geometry.Sample,
        draw: random.Random,
        batch_number: int,
        pairs: Sequence[tuple[int, int]] = (),
        *,
        scale: tuple[float, float] | None = None,
    ) -> geometry.Sample:
        """The last two steps; with `resize: longer` not filled up to a square.

        Args:
            pairs: of keypoints that change places in a mirror.
            scale: in place of `augment.scale`.
        """
        if draw.random() < self.augment.flip:
            sample = geometry.flip(sample, pairs)
        return self._resize(sample, draw, batch_number, scale or self.augment.scale)

    def _mosaic(
        self, source: BoxSource, sample: geometry.Sample, draw: random.Random, batch_number: int
    ) -> geometry.Sample:
        """An image, upper left, with three others. Each has its longer side at `side`, and all are
        enlarged by one factor out of `scale`, about the middle of the view. At 1 the point where
        they meet is anywhere in the view: Ultralytics and YOLOX draw it from the middle half of a
        canvas of twice the side, of which the middle is seen."""
        augment = self.augment
        shorter = augment.resize == "shorter"
        side = max(augment.sizes) if shorter else self.batch_size_px(batch_number)
        factor = draw.uniform(*augment.scale)
        y, x = (round(side * (0.5 + factor * draw.uniform(-0.5, 0.5))) for _ in range(2))
        samples = [sample, *(_load_partner(source, draw) for _ in range(3))]
        return mosaic([_fitted(one, side, factor) for one in samples], (y, x), side)

    def _resize(
        self,
        sample: geometry.Sample,
        draw: random.Random,
        batch_number: int,
        scale: tuple[float, float],
    ) -> geometry.Sample:
        augment = self.augment
        if augment.resize == "shorter":
            side = draw.choice(augment.sizes)
            return geometry.resize(sample, view_size(sample.size, side, augment))
        side = self.batch_size_px(batch_number)
        if augment.resize == "square":
            return geometry.resize(sample, view_size(sample.size, side, augment))
        size = view_size(sample.size, side, augment, draw.uniform(*scale))
        return geometry.in_square(sample, size, side, draw)

    def batch_size_px(self, batch_number: int) -> int:
        """The side of a batch's views, which are squares but with `resize: shorter`."""
        return random.Random(key_of(self.seed, "side", batch_number)).choice(self.augment.sizes)


class EvalBoxView:
    """The whole image at its own size; `downstream/detection/inference.py` makes views of it."""

    def __call__(
        self, source: BoxSource, index: int, view: int = 0, batch_number: int = 0
    ) -> tuple[Tensor, Target]:
        """
        Args:
            view, batch_number: not used: there is one view.

        Returns:
            as a training view, without masks. Crowd boxes are left out: evaluate against
            `source.boxes(index)`.

        Raises:
            Unreadable, OSError: the image cannot be read.
        """
        return _finish(load(source, index, masks=False), source.image_size(index))


def view_size(
    size: tuple[int, int], side: int, augment: BoxAugmentConfig, factor: float = 1.0
) -> tuple[int, int]:
    """Height and width of a view of an image of `size`: `side` squared, or with its longer side at
    `side`, or with its shorter side at `side` unless the longer one would exceed `augment.longest`
    (Ren et al. 2015, section 3.3; rounded as detectron2 `ResizeShortestEdge` does). Both `side` and
    `longest` grow by `factor`."""
    if augment.resize == "square":
        side = max(1, int(side * factor + 0.5))
        return side, side
    longer = augment.resize == "longer"
    scale = side / (max(size) if longer else min(size))
    if augment.longest is not None and not longer:
        scale = min(scale, augment.longest / max(size))
    scale *= factor
    height, width = (max(1, int(length * scale + 0.5)) for length in size)
    return height, width


def load(source: BoxSource, index: int, masks: bool = True) -> geometry.Sample:
    """The whole upright image with its boxes, without crowd ones.

    Args:
        masks: with those that the source has.

    Raises:
        Unreadable, OSError: it cannot be read, or has another size than at the start.
    """
    pixels = decode(source.read(index))
    height, width = source.image_size(index)
    if pixels.shape[:2] != (height, width):
        raise Unreadable(
            f"has {pixels.shape[1]} x {pixels.shape[0]} px, its boxes are for {width} x {height}"
        )
    boxes = source.boxes(index)
    chosen = ~boxes.crowd
    return geometry.make_sample(
        torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1),
        torch.from_numpy(boxes.xyxy[chosen]),
        torch.from_numpy(boxes.labels[chosen]),
        None if boxes.keypoints is None else torch.from_numpy(boxes.keypoints[chosen]),
        None
        if boxes.masks is None or not masks
        else _decoded([boxes.masks[j] for j in np.flatnonzero(chosen)], (height, width)),
    )


def _decoded(masks: list[Rle], size: tuple[int, int]) -> Tensor:
    """uint8 [n, h, w], where n may be 0."""
    return torch.from_numpy(decode_masks(masks) if masks else np.zeros((0, *size), np.uint8))


def _is_on(strength: float, epochs: int | None, view: int) -> bool:
    return strength > 0 and (epochs is None or view < epochs)


def _load_partner(source: BoxSource, draw: random.Random) -> geometry.Sample:
    index = draw.randrange(len(source))
    try:
        return load(source, index)
    except (OSError, Unreadable) as error:
        raise Unreadable(str(error), index) from error


def _fitted(sample: geometry.Sample, side: int, factor: float = 1.0) -> geometry.Sample:
    """With its longer side at `factor` times `side` px."""
    return geometry.resize(sample, view_size(sample.size, side, FITTED, factor))


def _finish(sample: geometry.Sample, size: tuple[int, int]) -> tuple[Tensor, Target]:
    target: Target = {
        "boxes": sample.boxes.as_subclass(Tensor),
        "labels": sample.labels,
        "weights": sample.weights,
        "size": size,
    }
    if sample.keypoints is not None and sample.visibility is not None:
        points = sample.keypoints.as_subclass(Tensor)
        target["keypoints"] = torch.cat([points, sample.visibility[..., None]], dim=-1)
    if sample.masks is not None:
        target["masks"] = sample.masks.as_subclass(Tensor).contiguous()
    return sample.image.as_subclass(Tensor).permute(1, 2, 0).contiguous(), target
