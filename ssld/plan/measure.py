"""The step and the loader of a run, measured: the teacher alone, the student alone, both, the
loader alone, and all together, on all processes at once. A run from stored labels has no teacher to
be measured."""

from __future__ import annotations

import dataclasses
import itertools
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ssld.data.loading import Batch
from ssld.distill.config import DistillConfig
from ssld.distill.distill import Distillation, distillation, open_networks
from ssld.distill.setup import ClassifierRun, Data, start_run
from ssld.distill.stored import StoredDistillation, open_stored
from ssld.distill.supervised import Supervision
from ssld.distill.task import Classification
from ssld.engine.config import LoopConfig
from ssld.engine.progress import Progress
from ssld.engine.start import Run
from ssld.engine.trainer import Trainer
from ssld.models.classifier import Classifier

WARM_UP_STEPS = 3


class HardLabels(Supervision):
    """The student's supervised step on made-up labels: speed does not depend on what they are. A
    student of features alone has none but its features to say them.

    Args:
        idle: what trains besides the student in the run that is measured. It gets gradients of
            zero, as DistributedDataParallel waits for one of every parameter.
    """

    def __init__(self, num_classes: int, idle: Iterable[nn.Module] = ()) -> None:
        super().__init__(num_classes)
        self.idle = [p for module in idle for p in module.parameters()]

    def losses(self, student: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy, float32 [b]."""
        logits = student(batch.images).float()
        labels = torch.arange(len(logits), device=logits.device) % logits.shape[-1]
        loss = cross_entropy(logits, labels, reduction="none")
        return {"cross_entropy": loss + sum(0 * p.sum() for p in self.idle)}


Config = TypeVar("Config", bound=LoopConfig)


def quietly(config: Config, folder: str) -> Config:
    """The same settings with their output in `folder`, and nothing to report or to go on from."""
    return dataclasses.replace(
        config, out=folder, trackers=[], resume=False, overwrite=False, allow_changes=[]
    )


def open_bench(config: DistillConfig, data: Data) -> tuple[Bench, dict[str, Any]]:
    """Of a distillation that asks its teacher, or of one from stored labels; and what run.json
    would say of its networks.

    Raises:
        InputError: bad weights, or labels of something else.
    """
    if config.labels:
        student, task, facts = open_stored(config, data)
        return Bench(start_run(data, student, facts, stored=task.stored), task, student), facts
    student, teacher, facts = open_networks(data, config)
    run = start_run(data, student, facts, teacher=teacher)
    return Bench(run, distillation(config, teacher, student), student), facts


class Bench:
    """The step and the loader of a run, to be measured instead of trained.

    Args:
        task: of the run.
        student: that it trains.
    """

    def __init__(
        self, run: ClassifierRun, task: Distillation | StoredDistillation, student: Classifier
    ) -> None:
        self.run, self.distillation, self.teacher = run, task, task.teacher
        self.num_classes = student.num_classes
        self.trainer = Trainer(run, task, student)
        self.progress = Progress(run, self.trainer.clock, 0, self.trainer.unreadables)

    def step(self, task: Classification, batches: Iterator[Batch]) -> Callable[[], None]:
        """A training step that can be called again and again."""

        def call() -> None:
            self.trainer.task = task
            self.trainer.step = 0  # a short run may be measured for longer than its rates go
            self.trainer.train_step(batches, self.progress)
            self.progress.kept.clear()

        return call

    def measure(self, seconds: float) -> dict[str, Any]:
        """Images per second over all processes, each part for about `seconds`.

        Returns:
            loader, teacher (forward; where each view is shown to one), student (supervised step,
            images in memory), both (distillation step, images in memory), together (distillation
            with the loader),
            supervised_together, ratio (both : student), ratio_together, peak_mib (of this process),
            split (percent of a step, as in metrics.jsonl).
        """
        run, clock = self.run, self.progress.clock
        labels = HardLabels(self.num_classes, self.distillation.auxiliary.values())
        rates: dict[str, Any] = {}
        loader = self.distillation.train_batches(run, 0, 10**9)  # without end
        rates["loader"] = rate(run, lambda: next(loader), seconds)
        memory = itertools.cycle([next(loader)])
        if isinstance(self.distillation, Distillation):
            rates["teacher"] = rate(run, self._teach(next(memory), self.distillation), seconds)
        rates["student"] = rate(run, self.step(labels, memory), seconds)
        rates["both"] = rate(run, self.step(self.distillation, memory), seconds)
        rates["supervised_together"] = rate(run, self.step(labels, loader), seconds)
        clock.take()
        started = time.monotonic()
        rates["together"] = rate(run, self.step(self.distillation, loader), seconds)
        whole = time.monotonic() - started
        rates["split"] = {k: round(100 * x / whole, 2) for k, x in clock.take().items()}
        rates["ratio"] = rates["both"] / rates["student"]
        rates["ratio_together"] = rates["together"] / rates["supervised_together"]
        rates["peak_mib"] = peak_mib(run.accelerator.device)
        return rates

    def _teach(self, batch: Batch, task: Distillation) -> Callable[[], None]:
        images = batch.images.to(self.run.accelerator.device)

        def call() -> None:
            with torch.no_grad():
                task.teacher(images)

        return call

    @property
    def least_bytes(self) -> int:
        return 3 * self.run.view.size**2

    def try_step(self, count: int) -> None:
        """One step on so many images that are noise."""
        self.step(self.distillation, itertools.repeat(self.made_up(count)))()

    def made_up(self, count: int) -> Batch:
        """A batch of so many images that are noise, as the task takes it."""
        size, device = self.run.view.size, self.run.accelerator.device
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(
            0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator
        )
        ones, none = torch.ones(count), torch.full((count,), -1)
        batch = Batch(images, ones, none, [str(i) for i in range(count)], [])
        if isinstance(self.distillation, StoredDistillation):
            batch = self.distillation.taught(batch)
        return batch.to(device)


def rate(
    run: Run, step: Callable[[], object], seconds: float, *, warm_up: int = WARM_UP_STEPS
) -> float:
    """Images per second of `step`, which takes one batch of each process."""
    device = run.accelerator.device
    for _ in range(warm_up):
        step()
    _synchronise(device)
    start = time.perf_counter()
    step()
    _synchronise(device)
    one = torch.tensor([time.perf_counter() - start], device=device)
    slowest: Any = run.accelerator.reduce(one, "mean")
    count = max(2, min(10_000, round(seconds / slowest.item())))  # the same on all processes
    start = time.perf_counter()
    for _ in range(count):
        step()
    _synchronise(device)
    each = run.config.batch_size // run.config.accumulate
    return each * count / (time.perf_counter() - start)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_mib(device: torch.device) -> float:
    """Peak memory so far: allocated on a GPU, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
