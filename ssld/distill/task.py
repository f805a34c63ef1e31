"""What tasks with a classifier have in common: batches, probe, verdict, export and report.

What their losses are is in `ssld/distill/distill.py` and `ssld/distill/supervised.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ssld.data.loading import Batch, ViewBatches, eval_batches
from ssld.data.transforms import EvalView
from ssld.data.unreadable import Unreadables
from ssld.distill import report
from ssld.distill.probe import probe
from ssld.distill.setup import ClassifierRun
from ssld.engine.checkpoint import export
from ssld.engine.optimizer import warmup_steps
from ssld.engine.task import Task
from ssld.health import verdict
from ssld.health.causes import NO_CAUSE, causes
from ssld.health.classification_metrics import ClassificationMetrics
from ssld.models.classifier import Classifier

DIAGNOSED_IMAGES = 256
"""Held-out images on which the causes of a run that does not learn are looked for."""


class Classification(Task[ClassifierRun, Batch, Classifier, ClassificationMetrics]):
    """The part of a task that does not depend on where targets come from."""

    exported = "student"
    other_view = False
    """Batches have another view of each image besides the student's."""
    agreement = "agreement1"
    """The metric of agreement that there is with the targets."""

    def train_batches(self, run: ClassifierRun, first_step: int, last_step: int) -> Iterator[Batch]:
        """This process's batches of steps [first_step, last_step)."""
        make = ViewBatches(run.sources, run.view, run.train_labels, other_view=self.other_view)
        return run.train_batches(make, first_step, last_step)

    def held_out(
        self, run: ClassifierRun, view: EvalView | None = None, description: str = "evaluate"
    ) -> Iterator[Batch]:
        """This process's held-out images, each once over all processes.

        Args:
            view: by default the run's.
        """
        make = ViewBatches(run.val, view or run.eval_view, run.val_labels)
        mixed = run.teacher is not None and run.teacher.needs_mixed_batches
        return run.eval_batches(make, description, mixed=mixed)

    def monitor(self, run: ClassifierRun) -> str:
        """The metric that decides which checkpoint is the best, or last."""
        best = run.config.checkpoint.best
        if self.agreement != "agreement1" and best in ("agreement1", "agreement5", "divergence"):
            return self.agreement
        return best

    def further_metrics(
        self, run: ClassifierRun, network: Classifier, step: int
    ) -> dict[str, float]:
        """What a probe finds, where one is due."""
        every = run.config.probe.every_epochs
        due = every > 0 and run.due(step, every * run.steps_per_epoch)
        return probe(run, network) if due else {}

    def noted(self, network: Classifier, metrics: Mapping[str, Any], metric: str) -> dict[str, Any]:
        """What is compared of an evaluation, symptoms included; see `ssld/health/verdict.py`."""
        return verdict.noted(metrics, metric, network.num_classes)

    def verdict(
        self,
        run: ClassifierRun,
        network: Classifier,
        metrics: dict[str, float],
        *,
        step: int,
        lr: float,
        initial: dict[str, Tensor],
    ) -> str:
        """Does it learn? One sentence; see `ssld/health/verdict.py`."""
        before = run.folder.history.evaluations()
        now = {"epoch": step / run.steps_per_epoch, **metrics}
        metric = self.monitor(run)
        metric = next((x for x in (metric, self.agreement) if x in metrics), "top1")
        if metric not in metrics:
            return "no verdict: there is neither a teacher nor a labeled held-out image"
        warmup = warmup_steps(run.config.schedule, run.total_steps, run.steps_per_epoch)
        judged = verdict.judge(
            [*before, now],
            metric=metric,
            num_classes=network.num_classes,
            share_of_peak=lr / run.facts["peak_lr"],
            finished=step == run.total_steps,
            early=step < warmup or (not before and step < run.total_steps),
        )
        if judged.kind != "not learning":
            return judged.sentence
        first, *others = self._causes(run, network, initial)
        if first.startswith(NO_CAUSE):
            first = f"{first[0].upper()}{first[1:]}"
        else:
            first = f"Likely causes: {first}"
        return f"{judged.sentence}. {'; '.join([first, *others])}"

    def _causes(
        self, run: ClassifierRun, network: Classifier, initial: dict[str, Tensor]
    ) -> list[str]:
        batches = eval_batches(
            ViewBatches(run.val, run.eval_view, run.val_labels),
            batch_size=64,
            workers=0,
            device=run.accelerator.device,
            unreadables=Unreadables(run.val, 1.0),
            limit=DIAGNOSED_IMAGES,
            mixed=run.teacher is not None and run.teacher.needs_mixed_batches,
        )
        return causes(network.eval(), initial, list(batches), run.teacher)

    def export(self, network: Classifier, folder: Path, step: int) -> str:
        """Write the network for plain timm; returns the sha256 of its weights."""
        return export(network, folder, step)

    def write_report(
        self, run: ClassifierRun, network: Classifier, score: ClassificationMetrics | None
    ) -> None:
        """Write report.html."""
        report.write_report(run, network, score)
