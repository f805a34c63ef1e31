"""The one training loop. A task (`ssld/engine/task.py`) says what a step's losses are, the trainer
(`ssld/engine/trainer.py`) has the step; when a line, an evaluation or a checkpoint is due is here.

These happen only where a line of metrics.jsonl is due, so that a run that was killed and resumed
has exactly the lines of one that was not. The loop gives way after each step: `train` goes on at
once, `ssld/engine/together.py` lets other runs take the same step first.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch

from ssld.common.errors import InputError, Interrupted, one_line
from ssld.data.workers import lost_worker
from ssld.engine.evaluation import Evaluator
from ssld.engine.preemption import Preemption
from ssld.engine.progress import Progress
from ssld.engine.task import B, N, R, S, Task
from ssld.engine.trainer import Trainer


class Stopped(Interrupted):
    """A signal asked for an end, and the run has written its checkpoint."""


def train(run: R, task: Task[R, B, N, S], student: N) -> S | None:
    """Train `student` for `run.total_steps`, or as long as `patience` lasts, then export it and
    write the report.

    Returns:
        the last evaluation, where there was one.

    Raises:
        InputError: too many unreadable images, a loss that is not finite, a full disk.
        Interrupted: a signal asked for an end and a checkpoint is written; a process was lost.
    """
    try:
        trainer, evaluator = open_training(run, task, student)
        batches = task.train_batches(run, trainer.step, run.total_steps)
        with Preemption() as stop:
            for _ in steps(trainer, evaluator, batches, stop):
                pass
        if stop.requested:  # after the last line: whoever calls would begin what comes next
            raise _stopped(trainer, stop)
        evaluator.finish(trainer)
        return evaluator.score
    except RuntimeError as error:
        raise lost_process(error) or error from error
    finally:
        run.folder.unlock()


def open_training(
    run: R, task: Task[R, B, N, S], student: N
) -> tuple[Trainer[R, B, N, S], Evaluator[R, B, N, S]]:
    """All on the device, before the first step or at the checkpoint that the run goes on from."""
    evaluator = Evaluator(run, task, student)
    trainer = Trainer(run, task, student)
    if run.config.resume:
        trainer.restore()
    return trainer, evaluator


def steps(
    trainer: Trainer[R, B, N, S],
    evaluator: Evaluator[R, B, N, S],
    batches: Iterator[B],
    stop: Preemption,
) -> Iterator[None]:
    """Take all steps that are left, with what is due after them; gives way after each.

    Args:
        batches: those of the coming step come first.

    Raises:
        Stopped: `stop` was requested.
        RunFailed, InputError: see `Progress.log`.
    """
    run, config = trainer.run, trainer.run.config
    with Progress(run, trainer.clock, trainer.step, trainer.unreadables) as progress:
        if trainer.evaluation_pending:
            if evaluator.run_on(trainer, progress, stop):
                _leave(trainer, evaluator, stop)
            trainer.save()
        while not trainer.complete:
            lr = trainer.lr()
            trainer.train_step(batches, progress)
            step = trainer.step
            if run.should_log(step):
                requested, overdue = progress.log(step, lr, stop.requested, trainer.task.logged())
                improved = False
                if run.val and run.due(step, config.evaluate_every_epochs * run.steps_per_epoch):
                    trainer.evaluation_pending, before = True, trainer.best
                    requested = requested or evaluator.run_on(trainer, progress, stop)
                    improved = trainer.best != before
                if requested:
                    _leave(trainer, evaluator, stop)
                if not trainer.complete:
                    evaluator.report_when_due(trainer)
                due = run.due(step, config.checkpoint.every_steps)
                if improved or overdue or due or trainer.complete:
                    trainer.save()
                    progress.saved_now()
                progress.restart_clock()
            yield


def _leave(
    trainer: Trainer[R, B, N, S], evaluator: Evaluator[R, B, N, S], stop: Preemption
) -> None:
    trainer.save()
    evaluator.report(trainer)
    raise _stopped(trainer, stop)


def _stopped(trainer: Trainer[R, B, N, S], stop: Preemption) -> Stopped:
    return Stopped(
        f"{stop.signal or 'a signal to another process'}: the checkpoint of step {trainer.step} is "
        "written; go on with --resume"
    )


def lost_process(error: RuntimeError) -> Interrupted | None:
    """What a RuntimeError of torch says when another process is gone, or None for other errors."""
    message = one_line(error)
    if "DataLoader worker (pid" in message:
        return lost_worker(error)
    lost = isinstance(error, torch.distributed.DistError) or "gloo" in message.lower()
    if lost or "Connection closed by peer" in message:
        return Interrupted(
            f"another process of this run is gone or cannot be reached ({message[:200]}); what it "
            "said itself tells why; go on with --resume"
        )
    return None


@contextlib.contextmanager
def lost_processes(what: str) -> Iterator[None]:
    """For a command that is no run, and goes on when it is given again.

    Args:
        what: the command is, as a sentence calls it.

    Raises:
        Interrupted: another of its processes is gone, or a signal came.
        InputError: as it came; what says that `--resume` goes on says that this command does.
    """
    try:
        yield
    except (RuntimeError, Interrupted, InputError) as error:
        told = lost_process(error) if isinstance(error, RuntimeError) else error
        if told is None:
            raise
        message = str(told).replace("of this run", f"of this {what}")
        message = message.replace("go on with --resume", "the same command goes on")
        message = re.sub(r"--resume(?= (goes|writes))", "the same command", message)
        if message == str(error):
            raise
        raise type(told)(message) from error
