"""Loader processes: start, watch and end them. What they load is the business of the function that
they are given, one call a batch, so that no sample passes through Python twice and nothing is
collated."""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Semaphore
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch._C import _remove_worker_pids
from torch.utils.data import DataLoader, Dataset, Sampler

from ssld.common.errors import InputError, Interrupted, one_line

START_SECONDS = 30.0
"""After which a loader process that has not begun never will."""
ATTEMPTS = 3
END_SECONDS = 1.0
"""After which a loader process that was told to end is killed; it takes 0.1 s."""

_PROCESSES: weakref.WeakSet[BaseProcess] = weakref.WeakSet()

Rows = np.ndarray
"""int64 [n, 4]: source, index, view, and the number of the batch over all processes."""
Loaded = TypeVar("Loaded")


class _Batches(Dataset, Generic[Loaded]):
    def __init__(self, make: Callable[[Rows], Loaded]) -> None:
        self.make = make

    def __getitem__(self, rows: Rows) -> Loaded | InputError:
        # Raised in a worker, the one sentence would arrive inside a traceback.
        try:
            return self.make(rows)
        except InputError as error:
            return error


class _Sampler(Sampler[Rows]):
    def __init__(self, rows: Callable[[], Iterator[Rows]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Rows]:
        return self.rows()


def load(
    make: Callable[[Rows], Loaded], rows: Callable[[], Iterator[Rows]], *, workers: int, pin: bool
) -> Iterator[Loaded]:
    """What `make` makes of each of `rows`, in their order.

    Args:
        make: must pickle cheaply; called in a loader process.
        workers: their number; 0 loads in this process.
        pin: bring what has `pin_memory` into page-locked memory.

    Raises:
        InputError: `make` did.
        Interrupted: a loader process is gone, or none begins.
    """
    if workers == 0:
        yield from (make(part) for part in rows())
        return
    iterator, owner = _start(_Batches(make), rows, workers, pin), os.getpid()
    try:
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
    finally:
        if os.getpid() == owner and not sys.is_finalizing():
            _end(iterator)


def _start(
    batches: _Batches, rows: Callable[[], Iterator[Rows]], workers: int, pin: bool
) -> Iterator[Any]:
    """A loader whose processes have all begun.

    A process that is forked while another thread of its parent holds a lock may wait for it for
    ever. CPython 3.11 does in PyOS_AfterFork_Child (mended in 3.12), where the threads of a process
    group make it likely enough to be met. It has read nothing yet, so it is started anew.

    Raises:
        Interrupted: they do not begin.
    """
    for _ in range(ATTEMPTS):
        begun, others = multiprocessing.Semaphore(0), set(multiprocessing.active_children())
        with warnings.catch_warnings():
            # More processes than cores are no news that is worth four lines a loader.
            warnings.filterwarnings("ignore", "This DataLoader will create")
            loader = DataLoader(
                batches,
                batch_size=None,  # the sampler yields whole batches
                sampler=_Sampler(rows),
                num_workers=workers,
                pin_memory=pin,
                worker_init_fn=functools.partial(_begin_worker, begun),
                prefetch_factor=2,
                generator=torch.Generator(),  # else it draws a seed from the global generator
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


def _end(iterator: Any) -> None:
    """End a loader's processes within `END_SECONDS`.

    A loader that an error left behind may come here from the garbage collector, which has already
    ended the threads that would tell the processes to end (those of multiprocessing's queues, by
    weak references). torch then waits 10 s for each, half of it after a SIGTERM that none heeds.
    """
    if iterator._worker_pids_set:  # else torch raises a RuntimeError wherever the main thread is
        _remove_worker_pids(id(iterator))
        iterator._worker_pids_set = False
    deadline = time.monotonic() + END_SECONDS
    iterator._workers = [_Ending(process, deadline) for process in iterator._workers]
    iterator._shutdown_workers()


class _Ending:
    """A loader process, as torch's `_shutdown_workers` sees it."""

    def __init__(self, process: BaseProcess, deadline: float) -> None:
        self.process = process
        self.deadline = deadline
        self.is_alive = process.is_alive
        self.terminate = process.kill

    def join(self, timeout: float | None = None) -> None:
        self.process.join(max(0.0, self.deadline - time.monotonic()))
        if self.process.is_alive():
            self.process.kill()
            self.process.join(timeout)


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
    reason = one_line(error)
    return Interrupted(
        f"a loader process is gone ({reason[:200]}), often for lack of memory: free some or lower "
        "data.workers, then go on with --resume"
    )


def _begin_worker(begun: Semaphore, _: int) -> None:
    torch.set_num_threads(1)
    # Clusters and Ctrl-C signal the whole process group. A worker is ended by the process that it
    # loads for, which still needs batches until its checkpoint is written.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    begun.release()
