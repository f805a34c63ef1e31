"""Where a step's time goes. On a GPU the sections are events on its stream, so that measuring does
not make the processor wait for it: `data_wait` is then the time the GPU stood idle for data."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from ssld.models.teacher import DTYPES

SECTIONS: tuple[str, ...] = (
    "data_wait",
    "transfer",
    "teacher",
    "student_forward",
    "backward",
    "reduction",
    "optimizer",
)
"""`reduction` is what the gradients' reduction adds after the backward pass that hides it; sums of
synchronised batch norm are in the passes that need them."""


class StepClock:
    """Seconds of each of `SECTIONS`; what is left of a step is `other`."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.spans: list[tuple[str, Any, Any]] = []
        self.frozen: list[str] = []
        """Sections that a step would not have without the networks that are not trained."""
        self._reduction: Any = None

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        start = self._now()
        yield
        self.spans.append((name, start, self._now()))

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, with its calls timed."""

        def call(*args: Any, **options: Any) -> Any:
            with self.section(name):
                return function(*args, **options)

        return call

    def time_calls(self, name: str, module: torch.nn.Module) -> None:
        """Time every forward pass of a module that is not trained from now on."""
        self.frozen.append(name)
        starts: list[Any] = []
        module.register_forward_pre_hook(lambda *_: starts.append(self._now()))
        module.register_forward_hook(
            lambda *_: self.spans.append((name, starts.pop(), self._now()))
        )

    @contextlib.contextmanager
    def backward(self) -> Iterator[None]:
        """Time a backward pass, and apart from it the part of the reduction that it cannot hide."""
        start, self._reduction = self._now(), None
        yield
        end = self._now()
        middle = self._reduction or end
        self.spans += [("backward", start, middle), ("reduction", middle, end)]

    def watch(self, model: torch.nn.Module) -> None:
        """Note when the last gradients of a distributed model are ready to be reduced."""
        if isinstance(model, DistributedDataParallel):
            model.register_comm_hook(None, lambda _, bucket: self._reduce(bucket))

    def _reduce(self, bucket: Any) -> torch.futures.Future[torch.Tensor]:
        if bucket.is_last():
            self._reduction = self._now()
        assert dist.group.WORLD is not None
        return default_hooks.allreduce_hook(dist.group.WORLD, bucket)

    def take(self) -> dict[str, float]:
        """Seconds of each section since the last call; on a GPU this waits for it."""
        seconds = dict.fromkeys(SECTIONS, 0.0)
        if self.cuda:
            torch.cuda.synchronize()
        for name, start, end in self.spans:
            seconds[name] += start.elapsed_time(end) / 1000 if self.cuda else end - start
        self.spans.clear()
        return seconds

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


TRIES = 6
"""Matrix products of which the fastest counts, after one that warms up."""
TRY_SECONDS = 0.1
"""Time after which no further one is begun."""


def peak_flops(device: torch.device, precisions: Iterable[str]) -> float:
    """Floating-point operations per second of a large matrix product, the ceiling that MFU (model
    FLOPs utilisation, Chowdhery et al. 2022, appendix B) is measured against here.

    Args:
        precisions: number formats that networks run in; the fastest of them and of fp32 counts.
    """
    return max(_product_flops(device, DTYPES[p]) for p in sorted({"fp32", *precisions}))


@functools.cache  # a command may begin many runs
def _product_flops(device: torch.device, dtype: torch.dtype) -> float:
    side = 8192 if device.type == "cuda" else 768
    generator = torch.Generator(device).manual_seed(0)  # the run's own randomness stays untouched
    a = torch.randn(side, side, device=device, generator=generator).to(dtype)
    seconds: list[float] = []
    with _as_convolutions():
        while len(seconds) <= TRIES and sum(seconds) < TRY_SECONDS:
            _synchronise(device)
            start = time.perf_counter()
            torch.mm(a, a)
            _synchronise(device)
            seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)


@contextlib.contextmanager
def _as_convolutions() -> Iterator[None]:
    """A product of float32 may round as convolutions do: on a GPU these take TF32 by default, with
    several times the speed, and products do not."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
