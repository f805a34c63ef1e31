"""The largest batch that fits: tried on a GPU, derived on a CPU, where trying could take the whole
machine down."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, Protocol

import psutil
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ssld.common.errors import InputError
from ssld.common.memory import free_bytes
from ssld.engine.progress import Progress
from ssld.engine.start import Run
from ssld.engine.trainer import Trainer
from ssld.models.sync_batch_norm import alone

MOST_IMAGES = 2**16
"""Images in one forward pass beyond which nobody needs to know."""
SPARE = 0.8
"""Share of a CPU's free memory that may be used; large batches need up to 15 % more an image."""


class Steps(Protocol):
    """What a run's steps are tried by; see `ssld.plan.measure.Bench`."""

    trainer: Trainer
    progress: Progress

    @property
    def run(self) -> Run: ...

    @property
    def teacher(self) -> nn.Module | None: ...

    @property
    def least_bytes(self) -> int:
        """Of an image in memory."""
        ...

    def try_step(self, count: int) -> None:
        """One step on so many images."""
        ...


def largest_batch(bench: Steps, derive_from: int | None = None) -> dict[str, Any]:
    """Try steps.

    Args:
        derive_from: images of the smaller of two steps from which the rest is derived on a CPU; by
            default those of a forward pass of the run.

    Returns:
        largest_batch: as `batch_size` counts, over all processes and accumulated passes, or None;
        how: in words;
        image_mib: what an image takes, None where that was not looked at, or is too little to tell.
    """
    run, image = bench.run, None
    passes = run.world_size * run.config.accumulate
    start = max(1, run.config.batch_size // passes)
    if _can_try(bench):
        count: int | None = _tried(bench, start)
        how = "tried, to within an eighth"
    else:
        count, image = _derived(bench, derive_from or start)
        how = "not known, a step needs too little memory to tell"
        if image is not None:
            how = f"derived, {image:.2f} MiB an image"
    if count is not None and 2 * count > MOST_IMAGES:
        how += "; or more, larger ones were not looked at"
    most = None if count is None else count * passes
    return {"largest_batch": most, "how": how, "image_mib": image}


def require_memory(bench: Steps) -> None:
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


def _can_try(bench: Steps) -> bool:
    return bench.run.accelerator.device.type == "cuda"


def _tried(bench: Steps, start: int) -> int:
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


def _fits(bench: Steps, count: int) -> bool:
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
            bench.try_step(count)
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
def _alone(bench: Steps) -> Iterator[None]:
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


def _derived(bench: Steps, start: int) -> tuple[int | None, float | None]:
    """Images that fit, and MiB of each, from how much more memory a step on twice the images needs;
    None of both where it is too little to tell."""
    small, large = start, 2 * start
    needs = []
    for count in (small, large):
        with _highest() as seen:
            bench.try_step(count)
        needs.append(max(seen))
    each = (needs[1] - needs[0]) / (large - small)
    free = free_bytes() / bench.run.world_size
    if each < bench.least_bytes:  # less than the images themselves: lost in the noise
        return None, None
    return min(int(large + SPARE * free / each), MOST_IMAGES), each / 2**20


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
