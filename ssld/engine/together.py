"""Several runs on one stream of batches: each batch is read once, and all runs that are at its step
take that step before the next one is read. What a run does in its steps, and after them, is as ever
`ssld/engine/loop.py`'s, so that it ends in what it would end in alone.

A run that fails leaves the others alone. After a kill the runs may be at different steps: the
stream begins at the lowest, and who is ahead waits for it.
"""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Generic

import torch
from tqdm import tqdm

from ssld.common.errors import InputError, Interrupted, RunFailed
from ssld.engine.evaluation import Evaluator
from ssld.engine.loop import Stopped, lost_process, open_training, steps
from ssld.engine.preemption import Preemption
from ssld.engine.task import B, N, R, S, Task
from ssld.engine.trainer import Trainer


class SharedBatches(Generic[B]):
    """A stream of batches for runs in lockstep: those of one step are kept, on the device.

    Args:
        batches: from number `first` on.
        kept: batches of a step.
    """

    def __init__(
        self, batches: Iterator[B], first: int, *, kept: int, device: torch.device
    ) -> None:
        self._batches = batches
        self._device = device
        self._kept: deque[B] = deque(maxlen=kept)
        self._coming = first
        """Number of the first batch that is not read yet."""

    def since(self, first: int) -> Iterator[B]:
        """Those from number `first` on; each must be asked for before `kept` more are read."""
        for number in itertools.count(first):
            if number == self._coming:
                self._kept.append(next(self._batches).to(self._device))
                self._coming += 1
            yield self._kept[number - self._coming]


def train_together(trained: Sequence[tuple[R, Task[R, B, N, S], N]]) -> None:
    """Train several networks at once on the batches of the first task; see
    `ssld.engine.loop.train`.

    Args:
        trained: runs with names, that have images, order, `batch_size`, `accumulate`, steps and
            `log_every_steps` in common, each with its task and network.

    Raises:
        InputError: of what all have in common, at once; of single runs, when the others are
            complete.
        Interrupted: a signal asked for an end, and every run has written a checkpoint; a process
            was lost.
    """
    try:
        runs = [open_training(*one) for one in trained]
        for trainer, _ in runs:
            trainer.unreadables.named = runs[0][0].unreadables.named
        failed: dict[str, str] = {}
        with Preemption() as stop:
            complete = _in_lockstep(runs, stop, failed)
        for trainer, evaluator in complete:
            try:
                evaluator.finish(trainer)
            except RunFailed as error:
                _note(trainer, error, failed)
    except RuntimeError as error:
        raise lost_process(error) or error from error
    finally:
        for run, *_ in trained:
            run.folder.unlock()
    if failed:
        raise InputError(_sentence(failed, len(trained)))


def _in_lockstep(
    runs: list[tuple[Trainer[R, B, N, S], Evaluator[R, B, N, S]]],
    stop: Preemption,
    failed: dict[str, str],
) -> list[tuple[Trainer[R, B, N, S], Evaluator[R, B, N, S]]]:
    """Take all steps of all runs; returns those that came to their end.

    Args:
        failed: gets the names of the others, and why.
    """
    (first, _), accumulate = runs[0], runs[0][0].run.config.accumulate
    begin = min(trainer.step for trainer, _ in runs)
    shared = SharedBatches(
        first.task.train_batches(first.run, begin, first.run.total_steps),
        begin * accumulate,
        kept=accumulate,
        device=first.run.accelerator.device,
    )
    left = {
        trainer: steps(trainer, evaluator, shared.since(trainer.step * accumulate), stop)
        for trainer, evaluator in runs
    }
    complete: set[Trainer[R, B, N, S]] = set()
    stopped = False
    while left:
        lowest = min(trainer.step for trainer in left)
        for trainer in [x for x in left if x.step == lowest]:
            try:
                next(left[trainer])
                continue
            except StopIteration:
                complete.add(trainer)
            except RunFailed as error:
                _note(trainer, error, failed)
            except Stopped:
                stopped = True
            del left[trainer]
    if stopped or stop.requested:  # after the last line, too
        raise Interrupted(
            f"{stop.signal or 'a signal to another process'}: a checkpoint of every run is "
            "written; go on with --resume"
        )
    return [(trainer, evaluator) for trainer, evaluator in runs if trainer in complete]


def _note(trainer: Trainer, error: RunFailed, failed: dict[str, str]) -> None:
    name = trainer.run.name
    failed[name] = str(error)
    if trainer.run.accelerator.is_main_process:
        tqdm.write(f"{name} has failed: {error}", file=sys.stderr)


def _sentence(failed: dict[str, str], runs: int) -> str:
    by_problem: dict[str, list[str]] = {}
    for name, problem in failed.items():
        by_problem.setdefault(problem, []).append(name)
    why = "; ".join(f"{', '.join(names)}: {problem}" for problem, names in by_problem.items())
    others = "the others are complete, " if len(failed) < runs else ""
    return f"{why} ({others}--resume tries {', '.join(failed)} again)"
