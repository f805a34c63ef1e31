"""The same work per image in this process, in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

import collections
import functools
import itertools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import ModuleType
from typing import TypeVar

from ssld.common.errors import Interrupted
from ssld.curate.workers_ray import ordered_on_ray

Item = TypeVar("Item")
Result = TypeVar("Result")

BATCH = 64
"""Images per item: enough for one matrix product, few enough to keep all workers busy."""
ITEMS_PER_WORKER = 4
"""Under way at once."""


def ordered(
    job: Callable[[Item], Result], items: Iterable[Item], *, workers: int, engine: str
) -> Iterator[Result]:
    """`job` of each item, in order, lazily.

    Args:
        job: a picklable callable.
        workers: processes; 0 does the work here.
        engine: `processes` or `ray`.

    Raises:
        Interrupted: a worker process was killed.
    """
    if engine == "ray":
        yield from ordered_on_ray(job, items, workers)
    elif workers == 0:
        yield from map(job, items)
    else:
        yield from _in_processes(job, items, workers)


def _in_processes(
    job: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    executor, waiting = _executor(workers), collections.deque()
    remaining = iter(items)
    try:
        for item in itertools.islice(remaining, workers * ITEMS_PER_WORKER):
            waiting.append(executor.submit(job, item))
        while waiting:
            result = waiting.popleft().result()
            for item in itertools.islice(remaining, 1):
                waiting.append(executor.submit(job, item))
            yield result
    except BrokenProcessPool as error:
        _executor.cache_clear()
        raise Interrupted(
            "a worker process is gone, often for lack of memory: free some or lower `workers`, "
            "then give the same command again"
        ) from error
    finally:
        for future in waiting:
            future.cancel()


@functools.cache
def _executor(workers: int) -> ProcessPoolExecutor:
    """The same processes for all stages: each takes a second to start."""
    # OpenCV hangs after a fork (opencv/opencv#5150).
    executor = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_begin_worker
    )
    # A spawned process runs the file of `__main__` again: a script that calls `ssld.curate` outside
    # of `if __name__ == "__main__":` would start over in each. No job of ours is defined there.
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        executor.submit(int)  # starts all processes
    finally:
        sys.modules["__main__"] = main
    return executor


def _begin_worker() -> None:
    # Threads of OpenCV and BLAS would fight for the cores that the workers already fill. Neither
    # is imported yet: the first job does that.
    os.environ["OMP_NUM_THREADS"] = "1"
    for number in (signal.SIGINT, signal.SIGTERM):  # signals go to the whole group
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """However that ends: a worker would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
