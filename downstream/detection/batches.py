"""Batches of images of different sizes with their boxes, made by loader processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from downstream.detection.data.boxes import BoxSource
from downstream.detection.data.transforms import EvalBoxView, TrainBoxView
from ssld.common.errors import one_line
from ssld.data.decode import Unreadable
from ssld.data.loading import GREY
from ssld.data.unreadable import Entry
from ssld.data.workers import Rows

GREY_PX = 32
"""Side of what stands in for an unreadable image; its weight is 0."""


@dataclass(frozen=True)
class BoxBatch:
    """One forward pass of one process."""

    images: Tensor
    """uint8 [b, h, w, 3], each in the upper left corner."""
    sizes: Tensor
    """int64 [b, 2]: height and width of each in px."""
    targets: list[dict[str, Tensor]]
    """"boxes" float32 [n, 4] xyxy px, "labels" int64 [n], "weights" float32 [n]."""
    scales: Tensor
    """float64 [b, 2]: px of the view for one of the image, across and down; 1 in training."""
    numbers: Tensor
    """int64 [b]: which held-out image it is; -1 in training."""
    weight: Tensor
    """float32 [b]: 1, or 0 for an unreadable image."""
    ids: list[str]
    unreadable: list[Entry]

    def map(self, function: Callable[[Tensor], Tensor]) -> BoxBatch:
        """The same batch with each of its tensors replaced."""
        return replace(
            self,
            images=function(self.images),
            sizes=function(self.sizes),
            targets=[{key: function(x) for key, x in t.items()} for t in self.targets],
            scales=function(self.scales),
            numbers=function(self.numbers),
            weight=function(self.weight),
        )

    def pin_memory(self) -> BoxBatch:
        """Called by the loader: page-locked memory is copied to a GPU without waiting."""
        return self.map(Tensor.pin_memory)


class TrainBoxes:
    """Makes the batch of training views that rows ask for."""

    def __init__(self, sources: Sequence[BoxSource], view: TrainBoxView) -> None:
        self.sources = list(sources)
        self.view = view

    def __call__(self, rows: Rows) -> BoxBatch:
        """
        Args:
            rows: int64 [b, 4].
        """

        def make(source: int, index: int, view: int, batch: int) -> tuple[Tensor, dict[str, Any]]:
            return self.view(self.sources[source], index, view, batch)

        return _batch(self.sources, rows, make, [-1] * len(rows))


class EvalBoxes:
    """Makes the batch of held-out images that rows ask for."""

    def __init__(self, sources: Sequence[BoxSource], view: EvalBoxView) -> None:
        self.sources = list(sources)
        self.view = view
        self.first = [sum(map(len, self.sources[:i])) for i in range(len(self.sources))]

    def __call__(self, rows: Rows) -> BoxBatch:
        """
        Args:
            rows: int64 [b, 4].
        """

        def make(source: int, index: int, *_: int) -> tuple[Tensor, dict[str, Any]]:
            return self.view(self.sources[source], index)

        numbers = [self.first[source] + index for source, index, *_ in rows.tolist()]
        return _batch(self.sources, rows, make, numbers)


def _batch(
    sources: Sequence[BoxSource],
    rows: Rows,
    make: Callable[..., tuple[Tensor, dict[str, Any]]],
    numbers: list[int],
) -> BoxBatch:
    views, ids, unreadable = [], [], []
    weight, scales = torch.ones(len(rows)), torch.ones(len(rows), 2, dtype=torch.float64)
    for i, row in enumerate(rows.tolist()):
        source, index = sources[row[0]], row[1]
        ids.append(source.sample_id(index))
        try:
            image, target = make(*row)
        except (OSError, Unreadable) as error:
            reason = one_line(error)
            unreadable.append((row[0], ids[-1], source.location(index), reason))
            weight[i] = 0.0
            image, target = torch.full((GREY_PX, GREY_PX, 3), GREY, dtype=torch.uint8), _nothing()
        scales[i] = torch.tensor(target.get("scale", (1.0, 1.0)))
        views.append((image, {key: target[key] for key in ("boxes", "labels", "weights")}))
    sizes = torch.tensor([image.shape[:2] for image, _ in views])
    height, width = sizes.amax(0).tolist()
    images = torch.zeros(len(views), height, width, 3, dtype=torch.uint8)
    for padded, (image, _) in zip(images, views, strict=True):
        padded[: image.shape[0], : image.shape[1]] = image
    targets = [target for _, target in views]
    return BoxBatch(
        images, sizes, targets, scales, torch.tensor(numbers), weight, ids, unreadable
    )  # fmt: skip


def _nothing() -> dict[str, Any]:
    return {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        "weights": torch.zeros(0),
    }
