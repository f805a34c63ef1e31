"""`ssld bench`: the teacher alone, the student alone, both, the loader alone, and all together.

Each is measured with the very step and loader of a run, after a warm-up, on all processes at once.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssld.distill.config import DistillConfig
from ssld.plan.config import BenchConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ssld.data.loading import Batch
    from ssld.distill.distill import Distillation
    from ssld.distill.setup import Run, Setup
    from ssld.models.classifier import Classifier
    from ssld.models.teacher import Teacher

WARM_UP_STEPS = 3


class HardLabels:
    """The student's supervised step on made-up labels: speed does not depend on what they are."""

    def losses(self, student: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy, float32 [b]."""
        import torch
        from torch.nn.functional import cross_entropy

        logits = student(batch.images).float()
        labels = torch.arange(len(logits), device=logits.device) % logits.shape[-1]
        return {"cross_entropy": cross_entropy(logits, labels, reduction="none")}


def quietly(config: DistillConfig, folder: str) -> DistillConfig:
    """The same settings with their output in `folder`, and nothing to report or to go on from."""
    return dataclasses.replace(
        config, out=folder, trackers=[], resume=False, overwrite=False, allow_changes=[]
    )


class Bench:
    """The step and the loader of a run, to be measured instead of trained.

    Args:
        digest: the teacher's sha256.
    """

    def __init__(self, setup: Setup, teacher: Teacher, student: Classifier, digest: str) -> None:
        from ssld.distill.distill import Distillation
        from ssld.engine.loop import Trainer
        from ssld.engine.progress import Progress

        config: DistillConfig = setup.config  # type: ignore[assignment]
        teacher.to(setup.device)
        self.teacher = teacher
        self.run = setup.start(student, teacher=teacher, teacher_sha256=digest)
        self.distillation = Distillation(teacher, config.loss)
        self.trainer = Trainer(self.run, self.distillation, student)
        self.progress = Progress(self.run, 0, self.trainer.unreadables)
        self.progress.clock.time_calls("teacher", teacher)
        self.progress.clock.watch(self.trainer.model)

    def step(self, task: Distillation | HardLabels, batches: Iterator[Batch]) -> Callable[[], None]:
        """A training step that can be called again and again."""

        def call() -> None:
            self.trainer.task = task  # type: ignore[assignment]  # nothing is evaluated
            self.trainer.train_step(batches, self.progress)
            self.progress.kept.clear()

        return call

    def measure(self, seconds: float) -> dict[str, Any]:
        """Images per second over all processes, each part for about `seconds`.

        Returns:
            loader, teacher (forward), student (supervised step, images in memory), both
            (distillation step, images in memory), together (distillation with the loader),
            supervised_together, ratio (both : student), ratio_together, peak_mib (of this process),
            split (percent of a step, as in metrics.jsonl).

        Raises:
            InputError: a step does not fit into a GPU's memory.
        """
        from ssld.plan.batch_size import require_memory

        require_memory(self)
        run, clock, labels = self.run, self.progress.clock, HardLabels()
        rates: dict[str, Any] = {}
        loader = self.distillation.train_batches(run, 0, 10**9)  # without end
        rates["loader"] = _rate(run, lambda: next(loader), seconds)
        memory = itertools.cycle([next(loader)])
        rates["teacher"] = _rate(run, self._teach(next(memory)), seconds)
        rates["student"] = _rate(run, self.step(labels, memory), seconds)
        rates["both"] = _rate(run, self.step(self.distillation, memory), seconds)
        rates["supervised_together"] = _rate(run, self.step(labels, loader), seconds)
        clock.take()
        started = time.monotonic()
        rates["together"] = _rate(run, self.step(self.distillation, loader), seconds)
        whole = time.monotonic() - started
        rates["split"] = {k: round(100 * x / whole, 2) for k, x in clock.take().items()}
        rates["ratio"] = rates["both"] / rates["student"]
        rates["ratio_together"] = rates["together"] / rates["supervised_together"]
        rates["peak_mib"] = peak_mib(run.accelerator.device)
        return rates

    def _teach(self, batch: Batch) -> Callable[[], None]:
        import torch

        images = batch.images.to(self.run.accelerator.device)

        def call() -> None:
            with torch.no_grad():
                self.teacher(images)

        return call


def _rate(run: Run, step: Callable[[], object], seconds: float) -> float:
    """Images per second of `step`, which takes one batch of each process."""
    import torch

    device = run.accelerator.device
    for _ in range(WARM_UP_STEPS):
        step()
    _synchronise(device)
    start = time.perf_counter()
    step()
    _synchronise(device)
    one = torch.tensor([time.perf_counter() - start], device=device)
    slowest = float(run.accelerator.reduce(one, "mean"))  # type: ignore[arg-type]
    count = max(2, min(10_000, round(seconds / slowest)))  # the same on all processes
    start = time.perf_counter()
    for _ in range(count):
        step()
    _synchronise(device)
    each = run.config.batch_size // run.config.accumulate
    return each * count / (time.perf_counter() - start)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()


def peak_mib(device: torch.device) -> float:
    """Peak memory so far: allocated on a GPU, else resident in this process."""
    import resource

    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


LABELS = {
    "loader": "loader alone",
    "teacher": "teacher alone, forward",
    "student": "student alone, supervised step",
    "both": "both, distillation step",
    "supervised_together": "supervised, all together",
    "together": "distillation, all together",
}


def bench(config: BenchConfig) -> None:
    """Print the table, and write it to `config.json`.

    Raises:
        InputError: bad settings, sources or weights.
    """
    from ssld.distill.distill import named
    from ssld.distill.setup import Setup
    from ssld.models.teacher import open_teacher

    with tempfile.TemporaryDirectory() as folder:
        setup = Setup(quietly(config, folder))
        teacher, digest = open_teacher(config.teachers or [config.teacher], config.precision)
        student = setup.open_student(teacher.num_classes, teacher.label_names)
        setup.describe({"student": student, **named(teacher)})
        rates = Bench(setup, teacher, student, digest).measure(config.seconds)
    say = setup.accelerator.print
    say(f"\n{setup.world} process(es) on {setup.device.type}, batch {config.batch_size}")
    for name, label in LABELS.items():
        say(f"  {label:<32}{rates[name]:>12,.1f} img/s")
    say(f"  {'distillation : supervised, step':<32}{rates['ratio']:>12.3f}")
    say(f"  {'distillation : supervised, all':<32}{rates['ratio_together']:>12.3f}")
    say(f"  {'peak memory':<32}{rates['peak_mib']:>12,.0f} MiB")
    write_json(config.json, rates, setup)


def write_json(path: str | None, result: dict[str, Any], setup: Setup) -> None:
    """Write a result for machines, where one is asked for."""
    from ssld.common.files import write_atomically

    if path and setup.accelerator.is_main_process:
        write_atomically(Path(path), json.dumps(result, indent=2) + "\n")
