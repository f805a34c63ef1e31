"""From rows of sources to batches on a device, for whatever a task makes of an image.

A task gives a function from rows to a batch (a `Maker`; for classifiers `ViewBatches`), which runs
in loader processes (`ssld/data/workers.py`): it makes a view of each image, or takes a placeholder
of weight 0 where that cannot be read, and collates them in its own way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ssld.common.errors import one_line
from ssld.common.streams import bar_output
from ssld.data.decode import Unreadable
from ssld.data.labels import LabelIndex
from ssld.data.sampling import Order, permutation
from ssld.data.source import Images, Source
from ssld.data.unreadable import Entry, Unreadables
from ssld.data.workers import Rows, load

GREY = 127
"""Every pixel of what stands in for an unreadable image; its weight is 0."""

Self = TypeVar("Self", bound="AnyBatch")
Made = TypeVar("Made", bound="AnyBatch", covariant=True)
ViewT = TypeVar("ViewT")


class AnyBatch:
    """What every batch has, one forward pass of one process; subclasses are frozen dataclasses."""

    weight: Tensor
    """float32 [b]: 1, or 0 for an unreadable image."""
    ids: list[str]
    unreadable: list[Entry]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def map(self: Self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same batch with each of its tensors replaced, also those in lists, dicts and batches
        in it."""
        mapped = {x: _mapped(getattr(self, x), function) for x in self.__dataclass_fields__}
        return dataclasses.replace(self, **mapped)

    def pin_memory(self: Self) -> Self:
        """Called by the loader: page-locked memory is copied to a GPU without waiting."""
        return self.map(Tensor.pin_memory)

    def to(self: Self, device: torch.device) -> Self:
        """Copy to where the networks are; overlaps with compute when memory is pinned."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, AnyBatch):
        return value.map(function)
    if isinstance(value, dict):
        return {key: _mapped(x, function) for key, x in value.items()}
    if isinstance(value, list):
        return [_mapped(x, function) for x in value]
    return value


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


class Maker(Protocol[Made]):
    """Makes a batch of rows (`ssld.data.workers.Rows`) of its sources; must pickle cheaply."""

    @property
    def sources(self) -> Sequence[Images]: ...

    def __call__(self, rows: Rows) -> Made: ...


def read_rows(
    sources: Sequence[Images],
    rows: Rows,
    view: Callable[..., ViewT],
    placeholder: Callable[[], ViewT],
) -> tuple[list[ViewT], Tensor, list[str], list[Entry]]:
    """A view of each row's image, or `placeholder()` where it cannot be read.

    Args:
        rows: int64 [b, 3 or 4]: source, index, and what else `view` takes.
        view: called with the numbers of a row; raises OSError or Unreadable.

    Returns:
        the views, and the `weight`, `ids` and `unreadable` of a batch of them.
    """
    views, ids, unreadable, weight = [], [], [], torch.ones(len(rows))
    for i, row in enumerate(rows.tolist()):
        number, index = row[:2]
        source = sources[number]
        ids.append(source.sample_id(index))
        try:
            views.append(view(*row))
        except (OSError, Unreadable) as error:
            culprit = error.index if isinstance(error, Unreadable) else None
            index = index if culprit is None else culprit
            place = source.sample_id(index), source.location(index)
            unreadable.append(Entry(number, *place, one_line(error)))
            weight[i] = 0.0
            views.append(placeholder())
    return views, weight, ids, unreadable


def image_numbers(sources: Sequence[Images], rows: Rows) -> Tensor:
    """int64 [b]: the number of each row's image among those of all sources."""
    first = np.cumsum([0, *map(len, sources)])
    return torch.from_numpy(first[rows[:, 0]] + rows[:, 1])


def train_batches(
    make: Maker[Made],
    sampler: Order,
    *,
    batch_size: int,
    first_step: int,
    last_step: int,
    accumulate: int = 1,
    workers: int = 0,
    pin: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Made]:
    """This process's part of steps [first_step, last_step), `accumulate` batches a step.

    Args:
        batch_size: samples of one step over all processes; processes take interleaved positions.
    """
    part = batch_size // accumulate

    def rows() -> Iterator[Rows]:
        for start in range(first_step * batch_size, last_step * batch_size, part):
            drawn = sampler.draw(start, start + part)[rank::world_size]  # [b, 3]
            yield np.concatenate([drawn, np.full((len(drawn), 1), start // part)], axis=1)

    return load(make, rows, workers=workers, pin=pin)


def eval_batches(
    make: Maker[Made],
    *,
    batch_size: int,
    workers: int = 0,
    device: torch.device | None = None,
    unreadables: Unreadables | None = None,
    rank: int = 0,
    world_size: int = 1,
    limit: int | None = None,
    mixed: bool = False,
    description: str | None = None,
) -> Iterator[Made]:
    """Every image exactly once over all processes, or an evenly spread sample of `limit`.

    Args:
        device: by default the CPU.
        unreadables: where to count images that cannot be read.
        mixed: not in the sources' order, which may be by class.
        description: of a progress bar on the first process, where it has a terminal.
    """
    device = device or torch.device("cpu")
    sizes = [len(source) for source in make.sources]
    total, ends = sum(sizes), np.cumsum(sizes)
    images = total if limit is None else min(total, limit)
    chosen = np.arange(images) * total // max(1, images)
    if mixed:
        chosen = chosen[permutation(images, "mixed")]
    chosen = chosen[rank::world_size]  # numbers of images among those of all sources

    def rows() -> Iterator[Rows]:
        for start in range(0, len(chosen), batch_size):
            part = chosen[start : start + batch_size]
            source = np.searchsorted(ends, part, side="right")
            index = part - (ends - np.asarray(sizes))[source]
            yield np.stack([source, index, np.zeros_like(part), np.zeros_like(part)], axis=1)

    output = bar_output(quiet=rank > 0 or not description, lines=False)
    with tqdm(total=images, desc=description, unit="img", leave=False, **output) as bar:
        for batch in load(make, rows, workers=workers, pin=device.type == "cuda"):
            if unreadables is not None:
                unreadables.add(batch.unreadable)
            yield batch.to(device)
            bar.update(min(len(batch.ids) * world_size, images - bar.n))
