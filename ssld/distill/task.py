"""What tasks with a classifier have in common: batches, probe, verdict, export and report.

What their losses are is in `ssld/distill/distill.py` and `ssld/distill/supervised.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds to import: --help must not
    from torch import Tensor

    from ssld.data.loading import Batch
    from ssld.data.transforms import EvalView
    from ssld.distill.setup import ClassifierRun
    from ssld.health.classification_metrics import Tally
    from ssld.models.classifier import Classifier

DIAGNOSED = 256
"""Held-out images on which the causes of a run that does not learn are looked for."""


class Classification:
    """The part of a task (`ssld.engine.loop.Task`) that does not depend on where targets come from."""

    exported = "student"

    def train_batches(self, run: ClassifierRun, first_step: int, last_step: int) -> Iterator[Batch]:
        """This process's batches of steps [first_step, last_step)."""
        from ssld.data.loading import train_batches
        from ssld.distill.config import DistillConfig

        config = run.config
        return train_batches(
            run.sources,
            run.order,
            run.view,
            batch_size=config.batch_size,
            rank=run.rank,
            world=run.world,
            first_step=first_step,
            last_step=last_step,
            accumulate=config.accumulate,
            workers=config.data.workers,
            pin=run.accelerator.device.type == "cuda",
            label_index=run.train_labels,
            other_view=isinstance(config, DistillConfig) and config.teacher_view == "other",
        )

    def held_out(
        self, run: ClassifierRun, view: EvalView | None = None, description: str = "evaluate"
    ) -> Iterator[Batch]:
        """This process's held-out images, each once over all processes.

        Args:
            view: by default the run's.
        """
        from ssld.data.unreadable import Unreadables, eval_batches

        return eval_batches(
            run.val,
            view or run.eval_view,
            batch_size=max(1, run.config.batch_size // run.world),
            workers=run.config.data.workers,
            device=run.accelerator.device,
            unreadables=Unreadables(run.val, run.config.data.max_unreadable),
            label_index=run.val_labels,
            rank=run.rank,
            world=run.world,
            mixed=run.teacher is not None and run.teacher.needs_mixed_batches,
            description=description,
        )

    def best_by(self, run: ClassifierRun) -> str:
        """The metric that decides which checkpoint is the best, or last."""
        return run.best_by

    def further_metrics(
        self, run: ClassifierRun, network: Classifier, step: int
    ) -> dict[str, float]:
        """What a probe finds, where one is due."""
        from ssld.distill.probe import probe

        every = run.config.probe.every_epochs
        due = every > 0 and run.due(step, every * run.steps_per_epoch)
        return probe(run, network) if due else {}

    def noted(self, network: Classifier, metrics: Mapping[str, Any], metric: str) -> dict[str, Any]:
        """What is compared of an evaluation, symptoms included; see `ssld/health/verdict.py`."""
        from ssld.health.verdict import noted

        return noted(metrics, metric, network.num_classes)

    def verdict(
        self,
        run: ClassifierRun,
        network: Classifier,
        metrics: dict[str, float],
        *,
        step: int,
        rate: float,
        initial: dict[str, Tensor],
    ) -> str:
        """Does it learn? One sentence; see `ssld/health/verdict.py`.

        Args:
            network: as it is trained.
            metrics: of this evaluation.
            rate: the coming learning rate.
            initial: the network's parameters before the first step, on the CPU.
        """
        from ssld.engine.optimizer import warmup_steps
        from ssld.health import verdict

        before = run.folder.history.evaluations()
        now = {"epoch": step / run.steps_per_epoch, **metrics}
        metric = run.best_by if run.best_by != "last" else "agreement1"
        if metric not in metrics:
            metric = "top1"
        if metric not in metrics:
            return "no verdict: there is neither a teacher nor a labeled held-out image"
        warmup = warmup_steps(run.config.schedule, run.total_steps, run.steps_per_epoch)
        found = verdict.judge(
            [*before, now],
            metric=metric,
            num_classes=network.num_classes,
            share_of_peak=rate / run.facts["peak_lr"],
            finished=step == run.total_steps,
            early=step < warmup or (not before and step < run.total_steps),
        )
        if found.kind != "not learning":
            return found.sentence
        likely = "; ".join(self._causes(run, network, initial))
        return f"{found.sentence}. Likely causes: {likely}"

    def _causes(
        self, run: ClassifierRun, network: Classifier, initial: dict[str, Tensor]
    ) -> list[str]:
        from ssld.data.unreadable import Unreadables, eval_batches
        from ssld.health.causes import causes

        batches = eval_batches(
            run.val,
            run.eval_view,
            batch_size=64,
            workers=0,
            device=run.accelerator.device,
            unreadables=Unreadables(run.val, 1.0),
            label_index=run.val_labels,
            limit=DIAGNOSED,
            mixed=run.teacher is not None and run.teacher.needs_mixed_batches,
        )
        return causes(network.eval(), initial, list(batches), run.teacher)

    def export(self, network: Classifier, folder: Path, step: int) -> str:
        """Write the network for plain timm; returns the sha256 of its weights."""
        from ssld.engine.export import export

        return export(network, folder, step)

    def write_report(self, run: ClassifierRun, network: Classifier, score: Tally | None) -> None:
        """Write report.html."""
        from ssld.distill.report import write_report

        write_report(run, network, score)

    def keep(self, run: ClassifierRun, score: Tally, step: int, best: bool) -> None:
        """Nothing is written beyond the metrics."""
