"""Batches of uint8 views, made by worker processes. One worker makes a whole batch, so that no
sample passes through Python twice and nothing is collated."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import multiprocessing
import signal
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Semaphore

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssld.data.decode import Unreadable
from ssld.data.sampling import Order, permutation
from ssld.data.sources import Source
from ssld.errors import InputError, Interrupted

GREY = 127
"""Every pixel of what stands in for an unreadable image; its weight is 0."""

START_SECONDS = 30.0
"""After which a loader process that has not begun never will."""
ATTEMPTS = 3

_PROCESSES: weakref.WeakSet[BaseProcess] = weakref.WeakSet()

View = Callable[[bytes, str, int], Tensor]
Rows = np.ndarray
"""int64 [n, 3]: source, index, view."""


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


class LabelIndex:
    """Class names or numbers -> class numbers.

    Args:
        names: all class names in the network's order, or None where labels are numbers.
        strict: an unknown label is an error; otherwise it is -1 and counts nowhere.
    """

    def __init__(self, names: list[str] | None, num_classes: int, *, strict: bool = True) -> None:
        self.numbers = {name: i for i, name in enumerate(names)} if names is not None else None
        self.num_classes = num_classes
        self.strict = strict

    def __call__(self, label: str | int | None) -> int:
        """Class number, -1 for None.

        Raises:
            InputError: a strict index does not know the label.
        """
        if label is None:
            return -1
        number = self.numbers.get(label, -1) if isinstance(label, str) and self.numbers else label
        if isinstance(number, int) and 0 <= number < self.num_classes:
            return number
        if self.strict:
            raise InputError(
                f"label {label!r} is not one of the {self.num_classes} classes; check the labels "
                "against the network's classes"
            )
        return -1


class _Batches(Dataset):
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

    def __getitem__(self, rows: Rows) -> Batch | InputError:
        # Raised in a worker, the one sentence would arrive inside a traceback.
        try:
            return self.load(rows)
        except InputError as error:
            return error

    def load(self, rows: Rows) -> Batch:
        size: int = self.view.size  # type: ignore[attr-defined]
        images = torch.empty((len(rows), size, size, 3), dtype=torch.uint8)
        others = torch.full_like(images, GREY) if self.other_view else None
        weight, labels = torch.ones(len(rows)), torch.full((len(rows),), -1)
        ids, unreadable = [], []
        for i, (source_number, index, view_number) in enumerate(rows.tolist()):
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
                reason = " ".join(str(error).split())
                unreadable.append((source_number, sample_id, source.location(index), reason))
        return Batch(images, weight, labels, ids, unreadable, others)


def train_batches(
    sources: Sequence[Source],
    order: Order,
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
    part = batch_size // accumulate

    def rows() -> Iterator[Rows]:
        for step in range(first_step, last_step):
            for start in range(step * batch_size, (step + 1) * batch_size, part):
                yield order.draw(start, start + part)[rank::world]

    return _load(_Batches(sources, view, label_index, other_view), rows, workers, pin)


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
    sizes = [len(source) for source in sources]
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
            index = part - (ends - sizes)[source]
            yield np.stack([source, index, np.zeros_like(part)], axis=1)

    return _load(_Batches(sources, view, label_index), rows, workers, pin)


def batches_of(
    sources: Sequence[Source],
    view: View,
    rows: Callable[[], Iterator[Rows]],
    *,
    workers: int,
    pin: bool,
) -> Iterator[Batch]:
    """The views that `rows` asks for, unlabeled, one batch for each of its pieces."""
    return _load(_Batches(sources, view, None), rows, workers, pin)


class _Sampler:
    def __init__(self, rows: Callable[[], Iterator[Rows]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Rows]:
        return self.rows()


def _load(
    batches: _Batches, rows: Callable[[], Iterator[Rows]], workers: int, pin: bool
) -> Iterator[Batch]:
    if workers == 0:
        yield from (batches.load(part) for part in rows())
        return
    iterator = _start(batches, rows, workers, pin)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except (EOFError, ConnectionError, FileNotFoundError) as error:
            raise lost_worker(error) from error  # gone while it handed a batch over
        if isinstance(batch, InputError):
            raise batch
        yield batch


def _start(
    batches: _Batches, rows: Callable[[], Iterator[Rows]], workers: int, pin: bool
) -> Iterator[Batch | InputError]:
    """A loader whose processes have all begun.

    A process that is forked while another thread of its parent holds a lock may wait for it for
    ever. CPython 3.11 does in PyOS_AfterFork_Child (mended in 3.12), where the threads of a process
    group make it likely enough to be met. It has read nothing yet, so it is started anew.

    Raises:
        Interrupted: they do not begin.
    """
    for _ in range(ATTEMPTS):
        begun, others = multiprocessing.Semaphore(0), set(multiprocessing.active_children())
        loader = DataLoader(
            batches,
            batch_size=None,  # the sampler yields whole batches
            sampler=_Sampler(rows),  # type: ignore[arg-type]
            num_workers=workers,
            pin_memory=pin,
            worker_init_fn=functools.partial(_begin_worker, begun),
            prefetch_factor=2,
            generator=torch.Generator(),  # else the loader draws a seed from the global generator
        )
        iterator = iter(loader)
        processes = set(multiprocessing.active_children()) - others
        _PROCESSES.update(processes)
        deadline = time.monotonic() + START_SECONDS
        if all(begun.acquire(timeout=max(0, deadline - time.monotonic())) for _ in range(workers)):
            return iterator
        print("warning: a loader process hangs before it begins: start anew", file=sys.stderr)
        _kill(processes)
        del iterator
    raise Interrupted("loader processes hang before they begin; go on with --resume")


def _kill(processes: Iterable[BaseProcess]) -> None:
    for process in processes:
        for end in (process.kill, process.join, process.join):
            with contextlib.suppress(RuntimeError):  # torch's notice that it is gone
                end()


@atexit.register
def _end_with_the_run() -> None:
    """Loader processes do not listen to SIGTERM, with which multiprocessing would end them."""
    _kill([process for process in _PROCESSES if process.is_alive()])


def lost_worker(error: Exception) -> Interrupted:
    """What to say when a loader process was killed; torch raises a RuntimeError wherever the run
    is then, unless the process was just handing a batch over."""
    said = " ".join(str(error).split()) or type(error).__name__
    return Interrupted(
        f"a loader process is gone ({said[:200]}), often for lack of memory: free some or lower "
        "data.workers, then go on with --resume"
    )


def _begin_worker(begun: Semaphore, _: int) -> None:
    torch.set_num_threads(1)
    # Clusters and Ctrl-C signal the whole process group. A worker is ended by the process that it
    # loads for, which still needs batches until its checkpoint is written.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    begun.release()
