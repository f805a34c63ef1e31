"""Batches of uint8 views with class numbers, for classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ssld.data.batching import GREY, AnyBatch, read_rows
from ssld.data.labels import LabelIndex
from ssld.data.source import Source
from ssld.data.unreadable import Entry
from ssld.data.workers import Rows


class View(Protocol):
    """Makes a view of an encoded image."""

    size: int
    """Its side in px."""

    def __call__(self, data: bytes, sample_id: str, view: int) -> Tensor:
        """uint8 [size, size, 3]. Raises Unreadable."""
        ...


@dataclass(frozen=True)
class Batch(AnyBatch):
    """One forward pass of one process."""

    images: Tensor
    """uint8 [b, size, size, 3]."""
    weight: Tensor
    """float32 [b]: 1, or 0 for an unreadable image."""
    labels: Tensor
    """int64 [b]: class number, -1 where there is none or none was asked for."""
    ids: list[str]
    unreadable: list[Entry]
    other_images: Tensor | None = None
    """Another view of each image, uint8 [b, size, size, 3], where it was asked for."""


class ViewBatches:
    """Makes the batch of views that rows ask for.

    Args:
        labels: how labels become class numbers; without it none is read.
        other_view: with a second view of each image.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        view: View,
        labels: LabelIndex | None = None,
        *,
        other_view: bool = False,
    ) -> None:
        self.sources = sources
        self.view = view
        self.labels = labels
        self.other_view = other_view

    def __call__(self, rows: Rows) -> Batch:
        """A batch of rows int64 [b, 3 or 4]: source, index, view."""
        labels = torch.full((len(rows),), -1)
        if self.labels is not None:
            for i, (number, index, *_) in enumerate(rows.tolist()):
                labels[i] = self.labels(self.sources[number].label(index))
        size = self.view.size
        grey = torch.full((size, size, 3), GREY, dtype=torch.uint8)
        views, weight, ids, unreadable = read_rows(
            self.sources, rows, self._views, lambda: [grey, grey][: 1 + self.other_view]
        )
        images, *others = map(torch.stack, zip(*views, strict=True))
        return Batch(images, weight, labels, ids, unreadable, *others)

    def _views(self, number: int, index: int, view: int, *_: int) -> list[Tensor]:
        source = self.sources[number]
        data, sample_id = source.read(index), source.sample_id(index)
        numbers = (view, -1 - view) if self.other_view else (view,)  # below 0: never a student's
        return [self.view(data, sample_id, number) for number in numbers]
