"""The one training loop. A task says what a step's losses are; everything else is here.

A task has `losses(student, batch) -> {term: float32 [b]}` and
`evaluate(student, batches) -> {metric: [sum, count]}`; see `ssld/distill.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from ssld.data.loading import Batch, train_batches
from ssld.network import Network
from ssld.run import checkpoint
from ssld.run.batch_norm import synchronise
from ssld.run.batches import Unreadables, eval_batches, on_device
from ssld.run.export import export
from ssld.run.optimizer import build_optimizer, learning_rate
from ssld.run.progress import Progress
from ssld.run.report import write_report
from ssld.run.samples import views_as_seen
from ssld.run.setup import Run


class Task(Protocol):
    def losses(self, student: nn.Module, batch: Batch) -> dict[str, Tensor]: ...

    def evaluate(self, student: Network, batches: Iterable[Batch]) -> dict[str, Tensor]: ...


class Trainer:
    """The state of one run: networks, optimizer, step."""

    def __init__(self, run: Run, task: Task, student: Network) -> None:
        config, accelerator = run.config, run.accelerator
        self.run, self.task = run, task
        student.to(accelerator.device)
        if config.channels_last:
            student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for network in run.teacher.networks if run.teacher else ():
            if config.channels_last:
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if config.compile:
                network.compile()
        self.ema = ModelEmaV3(student, config.ema.decay) if config.ema.decay else None
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
        self.unreadables = Unreadables(
            run.sources, config.data.max_unreadable, run.folder.path / "unreadable.jsonl"
        )

    @property
    def result(self) -> Network:
        """The network that is evaluated and exported: the average where there is one."""
        return self.ema.module if self.ema else self.student

    def train_step(self, batches: Iterator[Batch], progress: Progress) -> None:
        """One optimizer step on `accumulate` batches."""
        run, config = self.run, self.run.config
        rate = learning_rate(
            config.schedule,
            self.step,
            total_steps=run.total_steps,
            steps_per_epoch=run.steps_per_epoch,
            batch_size=config.batch_size,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(_step_seed(config.seed, self.step, run.rank))
        self.model.train()
        for micro in range(config.accumulate):
            batch = progress.wait_for(batches)
            self.unreadables.add(batch)
            with self._reduce_only(micro == config.accumulate - 1):
                with run.accelerator.autocast():
                    terms = self.task.losses(self.model, batch)
                loss = torch.stack(list(terms.values())).sum(0)  # [b]
                # An unreadable image weighs 0; the others keep their 1 / batch_size, so that the
                # gradient does not depend on how images are spread over processes.
                mean = (loss * batch.weight).sum() / len(loss)
                run.accelerator.backward(mean / config.accumulate)
            progress.add(self.step, terms, batch)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.ema and not self.optimizer.step_was_skipped:
            self.ema.update(self.student, step=self.step)

    def _reduce_only(self, last: bool) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if last else self.run.accelerator.no_sync(self.model)

    def evaluate(self) -> dict[str, float]:
        """Metrics on `data.val`, over all processes; empty without one."""
        run = self.run
        if not run.val:
            return {}
        network = self.result.eval()
        batches = eval_batches(
            run.val,
            run.eval_view,
            batch_size=max(1, run.config.batch_size // run.world),
            workers=run.config.data.workers,
            device=run.accelerator.device,
            unreadables=Unreadables(run.val, run.config.data.max_unreadable, None),
            label_index=run.val_labels,
            rank=run.rank,
            world=run.world,
            description="evaluate",
        )
        with torch.inference_mode(), run.accelerator.autocast():
            sums = self.task.evaluate(network, batches)
        return _means(run, sums)

    def _saved(self) -> dict[str, nn.Module]:
        """The networks of a checkpoint, by file name."""
        average = {"ema": self.ema.module.model} if self.ema else {}
        return {"student": self.student.model, **average}

    def save(self) -> None:
        """Write a checkpoint; the other processes wait."""
        run = self.run
        if run.accelerator.is_main_process:
            scaler = run.accelerator.scaler
            checkpoint.save(
                run.folder.path / "checkpoints",
                self.step,
                networks=self._saved(),
                optimizer=self.optimizer.state_dict(),
                state={
                    "scaler": scaler.state_dict() if scaler else None,
                    "teacher_sha256": run.facts.get("teacher_sha256"),
                    "data_sha256": run.facts["data_sha256"],
                },
                keep=run.config.checkpoint.keep,
            )
        run.accelerator.wait_for_everyone()

    def restore(self) -> None:
        """Go on from the latest sound checkpoint, if there is one."""
        run = self.run
        path = checkpoint.latest(run.folder.path / "checkpoints")
        if path is None:
            run.folder.forget_after(0)
            return
        optimizer, state = checkpoint.load(path, self._saved(), run.accelerator.device)
        run.check_same(state)
        self.optimizer.load_state_dict(optimizer)
        if run.accelerator.scaler and state["scaler"]:
            run.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        run.folder.forget_after(self.step)
        run.accelerator.print(f"resumed from {path} at step {self.step}")


def train(run: Run, task: Task, student: Network) -> None:
    """Train `student` for `run.total_steps`, then export it and write the report.

    Raises:
        InputError: too many unreadable images, a loss that is not finite.
    """
    trainer = Trainer(run, task, student)
    if run.config.resume:
        trainer.restore()
    config, progress = run.config, Progress(run, trainer.step)
    batches = train_batches(
        run.sources,
        run.order,
        run.view,
        batch_size=config.batch_size,
        rank=run.rank,
        world=run.world,
        first_step=trainer.step,
        last_step=run.total_steps,
        accumulate=config.accumulate,
        workers=config.data.workers,
        pin=run.accelerator.device.type == "cuda",
        label_index=run.train_labels,
    )
    evaluate_every = max(1, round(config.evaluate_every_epochs * run.steps_per_epoch))
    with progress:
        feed = on_device(batches, run.accelerator.device)
        while trainer.step < run.total_steps:
            trainer.train_step(feed, progress)
            last = trainer.step == run.total_steps
            due = last or trainer.step % config.checkpoint.every_steps == 0
            if due or trainer.step % config.log_every_steps == 0:
                progress.log(trainer.step, trainer.optimizer, trainer.unreadables.count)
            if last or trainer.step % evaluate_every == 0:
                progress.log_evaluation(trainer.step, trainer.evaluate())
            if due:
                trainer.save()
    _finish(run, trainer)


def _finish(run: Run, trainer: Trainer) -> None:
    if run.accelerator.is_main_process:
        export(trainer.result, run.folder.path / "student", run.facts)
        write_report(run.folder.path, run.facts, views_as_seen(run, trainer.result))
        run.accelerator.print(
            f"student: {run.folder.path / 'student'}\nreport:  {run.folder.path / 'report.html'}"
        )
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of dropout, stochastic depth and mixup at one step, a function of where it is."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _means(run: Run, sums: dict[str, Tensor]) -> dict[str, float]:
    """[sum, count] over all processes -> mean, leaving out what was never counted."""
    names = sorted(sums)
    if run.world > 1:
        from accelerate.utils import gather_object

        names = sorted(set(gather_object(names)))
    means = {}
    for name in names:
        pair = sums.get(name, torch.zeros(2, dtype=torch.float64, device=run.accelerator.device))
        total, count = run.accelerator.reduce(pair.clone(), "sum").tolist()  # type: ignore[union-attr]
        if count > 0:
            means[name] = total / count
    return means
