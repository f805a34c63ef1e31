"""The one training loop. A task says what a step's losses are; everything else is here.

A task (`Task` below) has `losses(student, batch) -> {term: float32 [b]}` and
`evaluate(student, batches)`; see `ssld/distill/distill.py` or `downstream/detection/task.py`. Lines,
evaluations and checkpoints happen only where a line of metrics.jsonl is due, so that a run that was
killed and resumed has exactly the lines of one that was not.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from ssld.common.errors import Interrupted, one_line
from ssld.data.unreadable import AnyBatch, Unreadables, to_device
from ssld.data.workers import lost_worker
from ssld.engine import checkpoint
from ssld.engine.evaluation import Judge
from ssld.engine.optimizer import build_optimizer, learning_rate
from ssld.engine.preemption import Preemption
from ssld.engine.progress import Progress
from ssld.engine.start import Run
from ssld.models.classifier import ImageModel
from ssld.models.memory_layout import as_images_lie
from ssld.models.sync_batch_norm import synchronise


class Score(Protocol):
    """What an evaluation found; see `ssld.health.classification_metrics.Tally`."""

    def reduce(self, accelerator: Any, cut_short: bool) -> bool:
        """Add up over all processes; False when it was cut short on any of them."""
        ...

    def metrics(self) -> dict[str, float]: ...


class Task(Protocol):
    """What a run is for. `ssld/distill/task.py` has what classifiers share."""

    exported: str
    """Name of the folder in the run folder that the best network is exported to."""

    def train_batches(self, run: Any, first_step: int, last_step: int) -> Iterator[Any]:
        """This process's batches of steps [first_step, last_step)."""
        ...

    def held_out(self, run: Any) -> Iterator[Any]:
        """This process's held-out images, each once over all processes."""
        ...

    def losses(self, student: Callable[..., Any], batch: Any, /) -> dict[str, Tensor]:
        """{term: float32 [b]}; their sum is what is minimised."""
        ...

    def evaluate(self, student: Any, batches: Iterable[Any], /) -> Score: ...

    def best_by(self, run: Any) -> str:
        """The metric that decides which checkpoint is the best, or last."""
        ...

    def further_metrics(self, run: Any, network: Any, step: int) -> dict[str, float]: ...

    def noted(self, network: Any, metrics: Any, metric: str, /) -> dict[str, Any]:
        """What `ssld.common.metrics.rank` compares of an evaluation; by the metrics that `Score` has, as
        all processes must agree."""
        ...

    def verdict(
        self,
        run: Any,
        network: Any,
        metrics: dict[str, float],
        *,
        step: int,
        rate: float,
        initial: dict[str, Tensor],
    ) -> str: ...

    def export(self, network: Any, folder: Path, step: int) -> str:
        """Write the network as a user loads it; returns the sha256 of its weights."""
        ...

    def keep(self, run: Any, score: Any, step: int, best: bool) -> None:
        """Write what an evaluation found beyond its metrics.

        Args:
            best: it is of the network that is exported.
        """
        ...

    def write_report(self, run: Any, network: Any, score: Any) -> None: ...


class Trainer:
    """The state of one run: networks, optimizer, step, and which checkpoint was the best."""

    def __init__(self, run: Run, task: Task, student: ImageModel) -> None:
        config, accelerator = run.config, run.accelerator
        self.run, self.task = run, task
        student.to(accelerator.device)
        if config.channels_last:
            student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        as_images_lie(student)
        for network in run.teacher.networks if run.teacher else ():
            if config.channels_last:
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if config.compile:
                network.compile()
        self.ema = (
            ModelEmaV3(student, config.ema.decay, use_warmup=True) if config.ema.decay else None
        )
        if config.sync_batch_norm and run.world > 1:
            student.model = synchronise(student.model, accelerator.device)
            if run.teacher is not None:
                for network in run.teacher.networks:
                    network.model = synchronise(network.model, accelerator.device)  # type: ignore[arg-type]
        if config.compile:
            student.compile()
        self.student = student
        self.model, self.optimizer = accelerator.prepare(
            student, build_optimizer(student, config.optimizer)
        )
        self.step = 0
        self.best: dict[str, Any] | None = None
        """Step, metric and value of the best evaluation so far."""
        self.evaluation_pending = False
        """The last checkpoint was written in the middle of its step's evaluation."""
        self.unreadables = Unreadables(
            run.sources, config.data.max_unreadable, run.folder.path / "unreadable.jsonl"
        )

    @property
    def result(self) -> ImageModel:
        """The network that is evaluated and exported: the average where there is one."""
        return self.ema.module if self.ema else self.student

    def rate(self) -> float:
        """The learning rate of the coming step."""
        run = self.run
        return learning_rate(
            run.config.schedule,
            self.step,
            total_steps=run.total_steps,
            steps_per_epoch=run.steps_per_epoch,
            batch_size=run.config.batch_size,
        )

    def train_step(self, batches: Iterator[AnyBatch], progress: Progress) -> None:
        """One optimizer step on `accumulate` batches."""
        run, config, clock = self.run, self.run.config, progress.clock
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate() * group["lr_scale"]
        torch.manual_seed(_step_seed(config.seed, self.step, run.rank))
        self.model.train()
        for micro in range(config.accumulate):
            batch = progress.wait_for(batches)
            self.unreadables.add(batch)
            with clock.section("transfer"):
                batch = to_device(batch, run.accelerator.device)
            with self._reduce_only(micro == config.accumulate - 1):
                with run.accelerator.autocast():
                    terms = self.task.losses(clock.timed("student_forward", self.model), batch)
                loss = torch.stack(list(terms.values())).sum(0)  # [b]
                # An unreadable image weighs 0; the others keep their 1 / batch_size, so that the
                # gradient does not depend on how images are spread over processes.
                mean = (loss * batch.weight).sum() / len(loss)
                with clock.backward():
                    run.accelerator.backward(mean / config.accumulate)
            progress.add(self.step, terms, batch)
        with clock.section("optimizer"):
            if config.optimizer.clip_norm:
                run.accelerator.clip_grad_norm_(self.model.parameters(), config.optimizer.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            if self.ema and not self.optimizer.step_was_skipped:
                self.ema.update(self.student, step=self.step)

    def _reduce_only(self, last: bool) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if last else self.run.accelerator.no_sync(self.model)

    def evaluate(self, stop: Preemption) -> Score | None:
        """The held-out images over all processes; None when a signal cut it short."""
        run = self.run
        network = self.result.eval()
        batches = self.task.held_out(run)
        with torch.inference_mode(), run.accelerator.autocast():
            score = self.task.evaluate(network, _until(stop, batches))
        return score if score.reduce(run.accelerator, stop.asked) else None

    def networks(self) -> dict[str, nn.Module]:
        """The networks of a checkpoint, by file name."""
        average = {"ema": self.ema.module.model} if self.ema else {}
        return {"student": self.student.model, **average}

    def save(self) -> None:
        """Write a checkpoint; the other processes wait."""
        run = self.run
        if run.accelerator.is_main_process:
            scaler = run.accelerator.scaler
            run.folder.sync()
            checkpoint.save(
                run.folder.path / "checkpoints",
                self.step,
                networks=self.networks(),
                optimizer=self.optimizer.state_dict(),
                state={
                    "best": self.best,
                    "evaluation_pending": self.evaluation_pending,
                    "scaler": scaler.state_dict() if scaler else None,
                    "teacher_sha256": run.facts.get("teacher_sha256"),
                    "start_sha256": run.facts.get("start_sha256"),
                    "data_sha256": run.facts["data_sha256"],
                    "val_sha256": run.facts["val_sha256"],
                    "annotations_sha256": run.facts.get("annotations_sha256"),
                    "unreadable": sorted(self.unreadables.entries.values()),
                },
                keep=run.config.checkpoint.keep,
                best=self.best["step"] if self.best else None,
            )
        run.accelerator.wait_for_everyone()

    def restore(self) -> None:
        """Go on from the checkpoint that the set-up chose, if there is one."""
        run, path = self.run, self.run.previous
        if path is None:
            run.folder.go_back_to(0, True)
        else:
            optimizer, state = checkpoint.load(path, self.networks())
            self.optimizer.load_state_dict(optimizer)
            if run.accelerator.scaler and state["scaler"]:
                run.accelerator.scaler.load_state_dict(state["scaler"])
            self.step, self.best = state["step"], state["best"]
            self.evaluation_pending = state["evaluation_pending"]
            self.unreadables.restore(state["unreadable"])
            if run.accelerator.is_main_process:
                checkpoint.set_aside_after(path.parent, self.step)
            run.folder.go_back_to(self.step, self.evaluation_pending)
            run.accelerator.print(f"resumed from {path} at step {self.step}")
        if run.accelerator.is_main_process:
            self.unreadables.write()
        run.accelerator.wait_for_everyone()


def train(run: Run, task: Task, student: ImageModel) -> Any:
    """Train `student` for `run.total_steps`, then export it and write the report.

    Returns:
        the last evaluation, where there was one.

    Raises:
        InputError: too many unreadable images, a loss that is not finite, a full disk.
        Interrupted: a signal asked for an end and a checkpoint is written; a process was lost.
    """
    try:
        judge = Judge(run, task, student)
        trainer = Trainer(run, task, student)
        if run.config.resume:
            trainer.restore()
        progress = Progress(run, trainer.step, trainer.unreadables)
        with progress, Preemption() as stop:
            _loop(trainer, progress, judge, stop)
        judge.finish(trainer)
        return judge.score
    except RuntimeError as error:
        raise lost_process(error) or error from error
    finally:
        run.folder.leave()


def _loop(trainer: Trainer, progress: Progress, judge: Judge, stop: Preemption) -> None:
    run, config = trainer.run, trainer.run.config
    batches = trainer.task.train_batches(run, trainer.step, run.total_steps)
    if run.teacher is not None:
        progress.clock.time_calls("teacher", run.teacher)
    progress.clock.watch(trainer.model)
    if trainer.evaluation_pending:
        if judge.judge(trainer, progress, stop):
            _leave(trainer, judge, stop)
        trainer.save()
    while trainer.step < run.total_steps:
        rate = trainer.rate()
        trainer.train_step(batches, progress)
        step = trainer.step
        if not run.line_due(step):
            continue
        asked, overdue = progress.log(step, rate, stop.asked)
        improved = False
        if run.val and run.due(step, config.evaluate_every_epochs * run.steps_per_epoch):
            trainer.evaluation_pending, before = True, trainer.best
            asked = asked or judge.judge(trainer, progress, stop)
            improved = trainer.best != before
        if asked:
            _leave(trainer, judge, stop)
        if improved or overdue or run.due(step, config.checkpoint.every_steps):
            trainer.save()
            progress.saved_now()
        progress.restart_clock()


def _leave(trainer: Trainer, judge: Judge, stop: Preemption) -> None:
    trainer.save()
    judge.report(trainer)
    raise Interrupted(
        f"{stop.signal or 'a signal to another process'}: the checkpoint of step {trainer.step} is "
        "written; go on with --resume"
    )


def _until(stop: Preemption, batches: Iterator[AnyBatch]) -> Iterator[AnyBatch]:
    for batch in batches:
        if stop.asked:
            return
        yield batch


def lost_process(error: RuntimeError) -> Interrupted | None:
    """What a RuntimeError of torch says when another process is gone, or None for other errors."""
    said = one_line(error)
    if "DataLoader worker (pid" in said:
        return lost_worker(error)
    lost = isinstance(error, torch.distributed.DistError) or "gloo" in said.lower()
    if lost or "Connection closed by peer" in said:
        return Interrupted(
            f"another process of this run is gone or cannot be reached ({said[:200]}); what it "
            "said itself tells why; go on with --resume"
        )
    return None


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of dropout, stochastic depth and mixup at one step, a function of where it is."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
