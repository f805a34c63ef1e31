"""Batches of images with masks, made by loader processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from downstream.segmentation.data.class_table import IGNORE
from downstream.segmentation.data.masks import MaskSource
from downstream.segmentation.data.transforms import EvalMaskView, TrainMaskView
from ssld.data.loading import GREY, AnyBatch, image_numbers, read_rows
from ssld.data.unreadable import Entry
from ssld.data.workers import Rows

GREY_PX = 32
"""Side of what stands in for an unreadable held-out image; its weight is 0."""


@dataclass(frozen=True)
class MaskBatch(AnyBatch):
    """One forward pass of one process."""

    images: Tensor
    """uint8 [b, h, w, 3]."""
    masks: Tensor
    """uint8 [b, h, w]: class numbers, IGNORE where nothing counts."""
    numbers: Tensor
    """int64 [b]: which held-out image it is; -1 in training."""
    generated: Tensor
    """bool [b]: whether its mask is generated."""
    weight: Tensor
    """float32 [b]: 1, or 0 for an unreadable image."""
    ids: list[str]
    unreadable: list[Entry]


class MaskBatches:
    """Makes the batch of views that rows ask for.

    Args:
        view: of training images, all of one size, or of held-out ones, which come one by one.
        human: how many sources, the first ones, have human masks; by default all.
    """

    def __init__(
        self,
        sources: Sequence[MaskSource],
        view: TrainMaskView | EvalMaskView,
        human: int | None = None,
    ) -> None:
        self.sources = list(sources)
        self.view = view
        self.human = len(self.sources) if human is None else human

    def __call__(self, rows: Rows) -> MaskBatch:
        """A batch of rows int64 [b, 4]."""
        views, weight, ids, unreadable = read_rows(
            self.sources, rows, self._view, self._placeholder
        )
        images, masks = map(torch.stack, zip(*views, strict=True))
        numbers = image_numbers(self.sources, rows)
        if isinstance(self.view, TrainMaskView):
            numbers.fill_(-1)
        generated = torch.from_numpy(rows[:, 0] >= self.human)
        return MaskBatch(images, masks, numbers, generated, weight, ids, unreadable)

    def _view(self, number: int, index: int, view: int, batch: int) -> tuple[Tensor, Tensor]:
        return self.view(self.sources[number], index, view, batch)

    def _placeholder(self) -> tuple[Tensor, Tensor]:
        size = self.view.augment.crop if isinstance(self.view, TrainMaskView) else (GREY_PX,) * 2
        grey = torch.full((*size, 3), GREY, dtype=torch.uint8)
        return grey, torch.full(size, IGNORE, dtype=torch.uint8)
