"""Processes and devices, from whichever launcher started us."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import (
    Accelerator,
    DistributedDataParallelKwargs,
    InitProcessGroupKwargs,
    PartialState,
)
from accelerate.utils import ProjectConfiguration, broadcast_object_list, gather_object

from ssld.common.errors import InputError, RunFailed
from ssld.common.memory import keep_freed_memory
from ssld.common.packages import is_installed
from ssld.engine.config import LoopConfig

Processes = Accelerator | PartialState
"""Of a run, or of a command before any of its runs."""
Seen = TypeVar("Seen")

PATIENCE = timedelta(days=7)
"""How long a process waits for the others. torch gives up after 10 minutes on GPUs, and a main
process that reads masks, indexes shards, writes a report or is at the slowest piece of a curation
takes longer. A process that is gone is noticed by its launcher and by its closed connections."""


def check_launcher(config: LoopConfig) -> None:
    """Settings live in our configuration; a launcher file that disagrees is an error.

    Raises:
        InputError: the launcher wants another precision, accumulation or kind of parallelism.
    """
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", config.precision):
        raise InputError(
            f"the launcher says mixed precision {precision} but `precision` is {config.precision}: "
            "set it in the recipe only"
        )
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps not in ("1", str(config.accumulate)):
        raise InputError(
            f"the launcher says {steps} accumulation steps but `accumulate` is "
            f"{config.accumulate}: set it in the recipe only"
        )
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no" and not config.compile:
        raise InputError("the launcher asks for compilation but `compile` is false: set it there")
    for name in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("true", "1"):
            raise InputError(f"the launcher asks for {name}: ssld runs on plain data parallelism")


def _on_cpu() -> bool:
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
    return asked or not torch.cuda.is_available()


def open_processes() -> PartialState:
    """The processes of this command, before any of its runs has opened them."""
    return PartialState(cpu=_on_cpu(), timeout=PATIENCE)


def open_accelerator(config: LoopConfig) -> Accelerator:
    """accelerate supplies topology, reduction and trackers; every setting is ours.

    Raises:
        InputError: a precision or tracker that is not to be had here.
    """
    cpu = _on_cpu()
    if cpu and config.precision == "fp16":
        raise InputError("precision fp16 needs a GPU; use bf16 or fp32")
    keep_freed_memory()
    # accelerate 1.15 hands on what torch 2.14 renames.
    warnings.filterwarnings("ignore", ".*broadcast_buffers. is deprecated", FutureWarning)
    try:
        return Accelerator(
            cpu=cpu,
            mixed_precision={"fp32": "no"}.get(config.precision, config.precision),
            gradient_accumulation_steps=1,  # the loop accumulates itself
            log_with=trackers_of(config) or None,
            project_config=ProjectConfiguration(project_dir=config.out, logging_dir=config.out),
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=PATIENCE),
                DistributedDataParallelKwargs(
                    broadcast_buffers=not config.sync_batch_norm, gradient_as_bucket_view=True
                ),
            ],
        )
    except ValueError as error:
        raise InputError(f"trackers or precision: {' '.join(str(error).split())}") from error


def trackers_of(config: LoopConfig) -> list[Any]:
    """Those that were asked for, less TensorBoard where it is not installed."""
    return [x for x in config.trackers if x != "tensorboard" or is_installed(x)]


def raise_on_all(
    processes: Processes, problem: str | None, error: type[InputError] = InputError
) -> None:
    """What is wrong on any process ends all of them; each has to call this, and waits for the
    others.

    Raises:
        InputError: or what `error` says, where any process has a problem.
    """
    problems = [problem]
    if processes.num_processes > 1:
        problems = gather_object(problems)
    first = next(filter(None, problems), None)
    if first:
        raise error(first)


@contextlib.contextmanager
def failing_together(processes: Processes) -> Iterator[None]:
    """Around what the main process does alone, writing mostly: if it fails, the run fails on all
    processes at this very place, and none waits for the others elsewhere.

    Raises:
        RunFailed: in the place of an InputError.
    """
    problem = None
    try:
        yield
    except InputError as error:
        if processes.num_processes == 1:
            raise RunFailed(str(error)) from error
        problem = str(error)
    raise_on_all(processes, problem, RunFailed)


def on_main(processes: Processes, look: Callable[..., Seen], *args: Any, **options: Any) -> Seen:
    """What `look` returns on the main process, which alone calls it, on all; each has to call this.

    Raises:
        InputError: on all, where `look` raises one.
    """
    shared: list[Any] = [None, None]  # what it sees, and what is wrong
    if processes.is_main_process:
        try:
            shared[0] = look(*args, **options)
        except InputError as error:
            shared[1] = str(error)
    if processes.num_processes > 1:
        broadcast_object_list(shared)
    if shared[1] is not None:
        raise InputError(shared[1])
    return shared[0]
