"""Batches of uint8 views, made by loader processes (`ssld/data/workers.py`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ssld.common.errors import one_line
from ssld.data.decode import Unreadable
from ssld.data.labels import LabelIndex
from ssld.data.sampling import Sampler, permutation
from ssld.data.source import Source
from ssld.data.workers import Rows, load

GREY = 127
"""Every pixel of what stands in for an unreadable image; its weight is 0."""

View = Callable[[bytes, str, int], Tensor]


@dataclass(frozen=True)
class Batch:
    """One forward pass of one process."""

    images: Tensor
    """uint8 [b, size, size, 3]."""
    weight: Tensor
    """float32 [b]: 1, or 0 for an unreadable image."""
    labels: Tensor
    """int64 [b]: class number, -1 where there is none or none was asked for."""
    ids: list[str]
    unreadable: list[tuple[int, str, str, str]]
    """Source number, sample id, location and reason of each unreadable image."""
    other_images: Tensor | None = None
    """Another view of each image, uint8 [b, size, size, 3], where it was asked for."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with each of its tensors replaced."""
        return dataclasses.replace(
            self,
            images=function(self.images),
            weight=function(self.weight),
            labels=function(self.labels),
            other_images=None if self.other_images is None else function(self.other_images),
        )

    def pin_memory(self) -> Batch:
        """Called by the loader: page-locked memory is copied to a GPU without waiting."""
        return self.map(Tensor.pin_memory)


class _ViewBatches:
    """Makes a batch of the views that rows ask for."""

    def __init__(
        self,
        sources: Sequence[Source],
        view: View,
        labels: LabelIndex | None,
        other_view: bool = False,
    ) -> None:
        self.sources = sources
        self.view = view
        self.labels = labels
        self.other_view = other_view

    def __call__(self, rows: Rows) -> Batch:
        size: int = self.view.size  # type: ignore[attr-defined]
        images = torch.empty((len(rows), size, size, 3), dtype=torch.uint8)
        others = torch.full_like(images, GREY) if self.other_view else None
        weight, labels = torch.ones(len(rows)), torch.full((len(rows),), -1)
        ids, unreadable = [], []
        for i, (source_number, index, view_number) in enumerate(rows[:, :3].tolist()):
            source = self.sources[source_number]
            sample_id = source.sample_id(index)
            ids.append(sample_id)
            if self.labels is not None:
                labels[i] = self.labels(source.label(index))
            try:
                data = source.read(index)
                images[i] = self.view(data, sample_id, view_number)
                if others is not None:  # the views below 0 are never a student's
                    others[i] = self.view(data, sample_id, -1 - view_number)
            except (OSError, Unreadable) as error:
                images[i], weight[i] = GREY, 0.0
                reason = one_line(error)
                unreadable.append((source_number, sample_id, source.location(index), reason))
        return Batch(images, weight, labels, ids, unreadable, others)


def train_batches(
    sources: Sequence[Source],
    order: Sampler,
    view: View,
    *,
    batch_size: int,
    rank: int,
    world: int,
    first_step: int,
    last_step: int,
    accumulate: int,
    workers: int,
    pin: bool,
    label_index: LabelIndex | None,
    other_view: bool = False,
) -> Iterator[Batch]:
    """This process's part of steps [first_step, last_step), `accumulate` batches a step.

    Args:
        other_view: with a second view of each image.
        batch_size: samples of one step over all processes; processes take interleaved positions.
    """
    rows = train_rows(
        order,
        batch_size=batch_size,
        rank=rank,
        world=world,
        first_step=first_step,
        last_step=last_step,
        accumulate=accumulate,
    )
    make = _ViewBatches(sources, view, label_index, other_view)
    return load(make, rows, workers=workers, pin=pin)


def train_rows(
    order: Sampler,
    *,
    batch_size: int,
    rank: int,
    world: int,
    first_step: int,
    last_step: int,
    accumulate: int,
) -> Callable[[], Iterator[Rows]]:
    """What this process trains on in steps [first_step, last_step), for `load`; see
    `train_batches`."""
    part = batch_size // accumulate

    def rows() -> Iterator[Rows]:
        for start in range(first_step * batch_size, last_step * batch_size, part):
            yield _numbered(order.draw(start, start + part)[rank::world], start // part)

    return rows


def eval_batches(
    sources: Sequence[Source],
    view: View,
    *,
    batch_size: int,
    rank: int,
    world: int,
    workers: int,
    pin: bool,
    label_index: LabelIndex | None,
    limit: int | None = None,
    mixed: bool = False,
) -> Iterator[Batch]:
    """Every image exactly once over all processes, or an evenly spread sample of `limit`.

    Args:
        mixed: not in the sources' order, which may be by class.
    """
    rows = eval_rows(
        [len(source) for source in sources],
        batch_size=batch_size,
        rank=rank,
        world=world,
        limit=limit,
        mixed=mixed,
    )
    return load(_ViewBatches(sources, view, label_index), rows, workers=workers, pin=pin)


def eval_rows(
    sizes: Sequence[int],
    *,
    batch_size: int,
    rank: int,
    world: int,
    limit: int | None = None,
    mixed: bool = False,
) -> Callable[[], Iterator[Rows]]:
    """What this process evaluates of sources of these sizes, for `load`; see `eval_batches`."""
    total, ends = sum(sizes), np.cumsum(sizes)
    chosen = np.arange(total)
    if limit is not None and limit < total:
        chosen = np.arange(limit) * total // limit
    if mixed:
        chosen = chosen[permutation(len(chosen), "mixed")]
    chosen = chosen[rank::world]

    def rows() -> Iterator[Rows]:
        for start in range(0, len(chosen), batch_size):
            part = chosen[start : start + batch_size]
            source = np.searchsorted(ends, part, side="right")
            index = part - (ends - np.asarray(sizes))[source]
            yield np.stack([source, index, np.zeros_like(part), np.zeros_like(part)], axis=1)

    return rows


def _numbered(rows: np.ndarray, batch: int) -> Rows:
    return np.concatenate([rows, np.full((len(rows), 1), batch)], axis=1)


def batches_of(
    sources: Sequence[Source],
    view: View,
    rows: Callable[[], Iterator[Rows]],
    *,
    workers: int,
    pin: bool,
) -> Iterator[Batch]:
    """The views that `rows` asks for, unlabeled, one batch for each of its pieces."""
    return load(_ViewBatches(sources, view, None), rows, workers=workers, pin=pin)
