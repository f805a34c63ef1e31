"""Batches of images of different sizes with their boxes, made by loader processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from downstream.detection.data.boxes import BoxSource
from downstream.detection.data.transforms import EvalBoxView, Target, TrainBoxView
from ssld.data.loading import GREY, AnyBatch, image_numbers, read_rows
from ssld.data.unreadable import Entry
from ssld.data.workers import Rows

GREY_PX = 32
"""Side of what stands in for an unreadable image; its weight is 0."""
TARGETS = ("boxes", "labels", "weights", "keypoints", "masks")
"""Keys of a view's target that the network sees."""


@dataclass(frozen=True)
class BoxBatch(AnyBatch):
    """One forward pass of one process."""

    images: Tensor
    """uint8 [b, h, w, 3], each in the upper left corner."""
    sizes: Tensor
    """int64 [b, 2]: height and width of each in px."""
    targets: list[dict[str, Tensor]]
    """"boxes" float32 [n, 4] xyxy px, "labels" int64 [n], "weights" float32 [n]; where the sources
    have them, "keypoints" float32 [n, k, 3] and, in training, "masks" uint8 [n, h, w] of each one's
    own size."""
    numbers: Tensor
    """int64 [b]: which held-out image it is; -1 in training."""
    generated: Tensor
    """bool [b]: whether its annotations are generated."""
    weight: Tensor
    """float32 [b]: 1, or 0 for an unreadable image."""
    ids: list[str]
    unreadable: list[Entry]


class BoxBatches:
    """Makes the batch of views that rows ask for.

    Args:
        view: of training images, or of held-out ones.
        human: how many sources, the first ones, have human annotations; by default all.
    """

    def __init__(
        self,
        sources: Sequence[BoxSource],
        view: TrainBoxView | EvalBoxView,
        human: int | None = None,
    ) -> None:
        self.sources = list(sources)
        self.view = view
        self.human = len(self.sources) if human is None else human

    def __call__(self, rows: Rows) -> BoxBatch:
        """A batch of rows int64 [b, 4]."""
        views, weight, ids, unreadable = read_rows(self.sources, rows, self._view, _placeholder)
        sizes = torch.tensor([image.shape[:2] for image, _ in views])  # [b, 2]
        height, width = sizes.amax(0).tolist()
        images = torch.zeros(len(views), height, width, 3, dtype=torch.uint8)
        for padded, (image, _) in zip(images, views, strict=True):
            padded[: image.shape[0], : image.shape[1]] = image
        targets = [{key: t[key] for key in TARGETS if key in t} for _, t in views]
        numbers = image_numbers(self.sources, rows)
        if isinstance(self.view, TrainBoxView):
            numbers.fill_(-1)
        generated = torch.from_numpy(rows[:, 0] >= self.human)
        return BoxBatch(images, sizes, targets, numbers, generated, weight, ids, unreadable)

    def _view(self, number: int, index: int, view: int, batch: int) -> tuple[Tensor, Target]:
        return self.view(self.sources[number], index, view, batch)


def _placeholder() -> tuple[Tensor, Target]:
    grey = torch.full((GREY_PX, GREY_PX, 3), GREY, dtype=torch.uint8)
    labels = torch.zeros(0, dtype=torch.int64)
    return grey, {"boxes": torch.zeros(0, 4), "labels": labels, "weights": torch.zeros(0)}
