"""The training step, and all state that it changes: networks, optimizer, step, best evaluation."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any, Generic

import torch
from accelerate.optimizer import AcceleratedOptimizer
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from ssld.data.unreadable import Unreadables
from ssld.engine import checkpoint
from ssld.engine.optimizer import average_decay, build_optimizer, learning_rate
from ssld.engine.preemption import Preemption
from ssld.engine.processes import failing_together
from ssld.engine.progress import Progress
from ssld.engine.task import B, N, R, S, Task
from ssld.engine.timing import StepClock
from ssld.models.classifier import ImageModel, as_images_lie
from ssld.models.sync_batch_norm import synchronise

FACTS = (
    *("teacher_sha256", "labels_sha256", "start_sha256"),
    *("data_sha256", "val_sha256", "annotations_sha256"),
)
"""Digests in a checkpoint of what a resumed run must have again."""


class Trainer(Generic[R, B, N, S]):
    """The state of one run."""

    def __init__(self, run: R, task: Task[R, B, N, S], student: N) -> None:
        config, accelerator = run.config, run.accelerator
        self.run, self.task = run, task
        self.clock = StepClock(accelerator.device)
        if task.auxiliary:  # from here on it goes wherever the student goes
            student.auxiliary = nn.ModuleDict(task.auxiliary)
        frozen = [_frozen_on(accelerator.device, module) for module in task.frozen.values()]
        networks: list[ImageModel] = [student, *(x for inside in frozen for x in inside)]
        student.to(accelerator.device)
        if config.channels_last:
            for network in networks:
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        as_images_lie(student)
        decay = config.ema.decay
        self.ema = ModelEmaV3(student, decay, use_warmup=True) if decay else None
        if self.ema:
            average: Any = self.ema.module
            task.averaged(average)
        if config.sync_batch_norm and run.world_size > 1:
            for network in networks:
                network.model = synchronise(network.model, accelerator.device)
            for module in task.auxiliary.values():
                synchronise(module, accelerator.device)
        if config.compile:
            for network in networks:
                network.compile()
        self.student = student
        self.model: nn.Module
        self.optimizer: AcceleratedOptimizer
        self.model, self.optimizer = accelerator.prepare(
            student, build_optimizer(student, config.optimizer)
        )
        for name, module in task.frozen.items():
            self.clock.time_calls(name, module)
        self.clock.watch(self.model)
        self.step = 0
        self.best: dict[str, Any] | None = None
        """What `Task.noted` kept of the best evaluation so far, and its step."""
        self.no_better = 0
        """Evaluations in a row that were not better than one before."""
        self.evaluation_pending = False
        """The last checkpoint was written in the middle of its step's evaluation."""
        self.unreadables = Unreadables(
            run.sources, config.data.max_unreadable, run.folder.path / "unreadable.jsonl"
        )

    @property
    def result(self) -> N:
        """The network that is evaluated and exported: the average where there is one."""
        average: Any = self.ema and self.ema.module
        return average or self.student

    def lr(self) -> float:
        """The learning rate of the coming step."""
        run = self.run
        return learning_rate(
            run.config.schedule,
            self.step,
            total_steps=run.total_steps,
            steps_per_epoch=run.steps_per_epoch,
            batch_size=run.config.batch_size,
        )

    def train_step(self, batches: Iterator[B], progress: Progress) -> None:
        """One optimizer step on `accumulate` batches."""
        accelerator, config, clock = self.run.accelerator, self.run.config, self.clock
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr() * group["lr_scale"]
        # What dropout and mixup draw follows from the step alone, so that a resumed run repeats it.
        torch.manual_seed(_step_seed(config.seed, self.step, self.run.rank))
        self.model.train()
        student = clock.timed("student_forward", self.model)
        for micro in range(config.accumulate):
            with clock.section("data_wait"):
                batch = next(batches)
            self.unreadables.add(batch.unreadable)  # an error where a source has too many
            with clock.section("transfer"):
                batch = batch.to(accelerator.device)
            last = micro == config.accumulate - 1  # only then gradients are summed over processes
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                with accelerator.autocast():
                    losses = self.task.losses(student, batch)  # {term: [b]}
                    weights = self.task.weights(batch, losses)  # [b]
                with clock.backward():
                    accelerator.backward(_mean(losses, weights) / config.accumulate)
            # Looked at when a line is due: no step waits for the device.
            progress.add(
                self.step, losses, batch, weights, self.task.blame(), self.task.groups(batch)
            )  # fmt: skip
        with clock.section("optimizer"):
            if config.optimizer.clip_norm:
                accelerator.clip_grad_norm_(self.model.parameters(), config.optimizer.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            self._share_buffers()
            if self.ema and not self.optimizer.step_was_skipped:
                self.ema.decay = self._average_decay()
                self.ema.update(self.student, step=self.step)

    def _average_decay(self) -> float:
        """Of the step that was taken last."""
        run = self.run
        return average_decay(
            run.config.ema,
            run.config.schedule,
            self.step - 1,
            total_steps=run.total_steps,
            steps_per_epoch=run.steps_per_epoch,
        )

    def _share_buffers(self) -> None:
        """Average what auxiliary modules hold over the processes, each of which saw a part of the
        batch: so it is the same on all, and what the one checkpoint holds."""
        if self.task.auxiliary and self.run.world_size > 1:
            for buffer in self.student.get_submodule("auxiliary").buffers():
                if buffer.is_floating_point():
                    shared: Any = self.run.accelerator.reduce(buffer, "mean")
                    buffer.copy_(shared)

    def evaluate(self, stop: Preemption) -> S | None:
        """The held-out images over all processes; None when a signal cut it short."""
        run, task = self.run, self.task
        network = self.result.eval()
        with torch.inference_mode(), run.accelerator.autocast():
            score = task.evaluate(network, _until(stop, task.held_out(run)))
        return score if score.reduce(run.accelerator, stop.requested) else None

    def networks(self) -> dict[str, nn.Module]:
        """Everything that trains, by its name in a checkpoint."""
        networks = {"student": self.student.model}
        if self.ema:
            networks["ema"] = self.result.model
        if self.task.auxiliary:
            networks["auxiliary"] = self.student.get_submodule("auxiliary")
            if self.ema:
                networks["ema_auxiliary"] = self.result.get_submodule("auxiliary")
        return networks

    @property
    def complete(self) -> bool:
        """All steps are taken, or `patience` is at its end."""
        patience = self.run.config.patience
        return self.step >= self.run.total_steps or (
            patience is not None and self.no_better >= patience
        )

    def save(self) -> None:
        """Write a checkpoint; the other processes wait.

        Raises:
            RunFailed: it cannot be written.
        """
        accelerator = self.run.accelerator
        with failing_together(accelerator):
            if accelerator.is_main_process:
                self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        run, scaler = self.run, self.run.accelerator.scaler
        run.folder.sync()
        checkpoint.save(
            run.folder.path / "checkpoints",
            self.step,
            networks=self.networks(),
            optimizer=self.optimizer.state_dict(),
            state={
                "best": self.best,
                "no_better": self.no_better,
                "evaluation_pending": self.evaluation_pending,
                "scaler": scaler.state_dict() if scaler else None,
                **{key: run.facts.get(key) for key in FACTS},
                "unreadable": sorted(self.unreadables.entries.values()),
            },
            keep=run.config.checkpoint.keep,
            best=self.best["step"] if self.best else None,
        )

    def restore(self) -> None:
        """Go on from the checkpoint that the set-up chose, if there is one."""
        run, path = self.run, self.run.previous
        if path is None:
            run.folder.truncate(0, True)
        else:
            optimizer, state = checkpoint.load(path, self.networks())
            self.optimizer.load_state_dict(optimizer)
            if run.accelerator.scaler and state["scaler"]:
                run.accelerator.scaler.load_state_dict(state["scaler"])
            self.step, self.best = state["step"], state["best"]
            self.no_better = state.get("no_better", 0)  # older checkpoints have none
            self.evaluation_pending = state["evaluation_pending"]
            self.unreadables.merge(state["unreadable"])
            if run.accelerator.is_main_process:
                checkpoint.set_aside_after(path.parent, self.step)
            run.folder.truncate(self.step, self.evaluation_pending)
            run.accelerator.print(f"resumed from {path} at step {self.step}")
        if run.accelerator.is_main_process:
            self.unreadables.write()
        run.accelerator.wait_for_everyone()


def _frozen_on(device: torch.device, module: nn.Module) -> list[ImageModel]:
    """The networks in a module that is not trained, moved to the device with it."""
    return [x for x in module.to(device).modules() if isinstance(x, ImageModel)]


def _mean(terms: dict[str, Tensor], weights: Tensor) -> Tensor:
    """The loss of a batch. An unreadable image weighs 0; the others keep their 1 / batch_size, so
    that the gradient does not depend on how images are spread over processes.

    Args:
        terms: {term: float32 [b]}.
        weights: float32 [b].
    """
    loss = torch.stack(list(terms.values())).sum(0)  # [b]
    return (loss * weights).sum() / len(loss)


def _until(stop: Preemption, batches: Iterator[B]) -> Iterator[B]:
    for batch in batches:
        if stop.requested:
            return
        yield batch


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of dropout, stochastic depth and mixup at one step, a function of where it is."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
