"""The largest batch that fits: tried on a GPU, derived on a CPU, where trying could take the whole
machine down."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import psutil
import torch
from torch.nn.parallel import DistributedDataParallel

from ssld.common.errors import InputError
from ssld.common.memory import free_bytes
from ssld.models.sync_batch_norm import alone
from ssld.plan.measure import Bench

MOST_IMAGES = 2**16
"""Images in one forward pass beyond which nobody needs to know."""
SPARE = 0.8
"""Share of a CPU's free memory that may be used; large batches need up to 15 % more an image."""


def largest_batch(bench: Bench) -> dict[str, Any]:
    """Try distillation steps on made-up images.

    Returns:
        largest_batch: as `batch_size` counts, over all processes and accumulated passes, or None;
        how: in words.
    """
    run = bench.run
    passes = run.world_size * run.config.accumulate
    start = max(1, run.config.batch_size // passes)
    if _can_try(bench):
        count: int | None = _tried(bench, start)
        how = "tried, to within an eighth"
    else:
        count, how = _derived(bench, start)
    if count is not None and 2 * count > MOST_IMAGES:
        how += "; or more, larger ones were not looked at"
    return {"largest_batch": None if count is None else count * passes, "how": how}


def require_memory(bench: Bench) -> None:
    """Try one step of the run's own size, where trying does no harm, before processes wait for each
    other in such a step.

    Raises:
        InputError: it does not fit on some process; says what does.
    """
    config = bench.run.config
    passes = bench.run.world_size * config.accumulate
    if not _can_try(bench) or _fits(bench, config.batch_size // passes):
        return
    most = passes * _tried(bench, config.batch_size // passes)
    raise InputError(
        f"batch_size is {config.batch_size}, which does not fit into memory; about {most} is the "
        "most that does: lower it, or raise accumulate"
    )


def _can_try(bench: Bench) -> bool:
    return bench.run.accelerator.device.type == "cuda"


def _step(bench: Bench, count: int) -> None:
    bench.step(bench.distillation, itertools.repeat(bench.made_up(count)))()


def _tried(bench: Bench, start: int) -> int:
    """Double until it does not fit, then halve the gap three times."""
    fits, fails = 0, None
    count = start
    while count <= MOST_IMAGES and fails is None:
        fits, fails = (count, None) if _fits(bench, count) else (fits, count)
        count *= 2
    while fits == 0 and fails is not None and fails > 1:
        fits, fails = (fails // 2, fails) if _fits(bench, fails // 2) else (0, fails // 2)
    for _ in range(3):
        if fails is None or fails - fits < 2:
            break
        middle = (fits + fails) // 2
        fits, fails = (middle, fails) if _fits(bench, middle) else (fits, middle)
    return fits


def _fits(bench: Bench, count: int) -> bool:
    """Whether every process has the memory for a step on `count` images; all say the same.

    Each tries for itself, without a word to the others: one that runs out in the middle would leave
    them waiting for it.

    Raises:
        InputError: the step failed on another process, and not for want of memory.
    """
    run, failure = bench.run, None
    short = False
    with _alone(bench):
        try:
            _step(bench, count)
            if run.accelerator.device.type == "cuda":
                torch.cuda.synchronize()
        except RuntimeError as error:
            short = _out_of_memory(error)
            failure = None if short else error
    bench.progress.kept.clear()
    bench.trainer.optimizer.zero_grad()
    torch.cuda.empty_cache()
    device = run.accelerator.device
    mine = torch.tensor([float(short), float(failure is not None)], device=device)
    outcome: Any = run.accelerator.reduce(mine, "sum")
    without_memory, failed = outcome.tolist()
    if failure is not None:
        raise failure
    if failed:
        raise InputError(
            f"a step on {count} images failed on another process, whose own words say why"
        )
    return not without_memory


@contextlib.contextmanager
def _alone(bench: Bench) -> Iterator[None]:
    """Steps inside send nothing: neither gradients nor buffers nor statistics of batch norm."""
    model = bench.trainer.model
    distributed = model if isinstance(model, DistributedDataParallel) else None
    sends_buffers = distributed is not None and distributed.require_forward_param_sync
    networks = [bench.trainer.student, *([bench.teacher] if bench.teacher else [])]
    with bench.run.accelerator.no_sync(model), alone(*networks):
        if distributed is not None:
            distributed.require_forward_param_sync = False
        try:
            yield
        finally:
            if distributed is not None:
                distributed.require_forward_param_sync = sends_buffers


def _out_of_memory(error: RuntimeError) -> bool:
    """Libraries beneath torch say it in their own ways."""
    message = str(error)
    out = isinstance(error, torch.OutOfMemoryError)
    return out or "out of memory" in message or "ALLOC_FAILED" in message


def _derived(bench: Bench, start: int) -> tuple[int | None, str]:
    """From how much more memory a step on twice the images needs."""
    small, large = start, 2 * start
    needs = []
    for count in (small, large):
        with _highest() as seen:
            _step(bench, count)
        needs.append(max(seen))
    each = (needs[1] - needs[0]) / (large - small)
    free = free_bytes() / bench.run.world_size
    if each < bench.run.view.size**2 * 3:  # less than the images themselves: lost in the noise
        return None, "not known, a step needs too little memory to tell"
    count = int(large + SPARE * free / each)
    return min(count, MOST_IMAGES), f"derived, {each / 2**20:.2f} MiB an image"


@contextlib.contextmanager
def _highest() -> Iterator[list[int]]:
    """This process's resident bytes, looked at all the time."""
    process, seen, done = psutil.Process(), [], threading.Event()

    def look() -> None:
        while not done.wait(0.001):
            seen.append(process.memory_info().rss)

    seen.append(process.memory_info().rss)
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
