"""From an evaluation to a judgement: probe, verdict, best checkpoint, export, report."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from torch import Tensor

from ssld import verdict
from ssld.diagnosis import causes
from ssld.network import Network
from ssld.probe import probe
from ssld.report.run import write_report
from ssld.run import checkpoint
from ssld.run.batches import Unreadables, eval_batches
from ssld.run.export import export, load_exported
from ssld.run.optimizer import warmup_steps
from ssld.run.preemption import Preemption
from ssld.run.progress import Progress
from ssld.run.setup import Run
from ssld.tally import Tally

if TYPE_CHECKING:
    from ssld.run.loop import Trainer

REPORT_SECONDS = 60.0
"""Least time between two reports of a run that goes on."""
DIAGNOSED = 256
"""Held-out images on which the causes of a run that does not learn are looked for."""


class Judge:
    """Judges one run.

    Args:
        student: before the first step; its parameters are copied on the main process.
    """

    def __init__(self, run: Run, student: Network) -> None:
        self.run = run
        self.initial: dict[str, Tensor] = {}
        if run.accelerator.is_main_process:
            named = student.model.named_parameters()
            self.initial = {name: p.detach().cpu().clone() for name, p in named}
        self.tally: Tally | None = None
        self.reported = -REPORT_SECONDS

    def judge(self, trainer: Trainer, progress: Progress, stop: Preemption) -> bool:
        """Evaluate, and do everything that follows from it; True when a signal cut it short."""
        run = self.run
        tally = trainer.evaluate(stop)
        if tally is None:
            return True
        self.tally, metrics = tally, tally.metrics()
        if self._probe_due(trainer.step):
            metrics |= probe(run, trainer.result)
        improved = self._is_best(trainer, metrics)
        if run.accelerator.is_main_process:
            progress.log_evaluation(trainer.step, metrics, self._verdict(trainer, metrics))
            if improved:
                export(trainer.result, run.folder.path / "student", trainer.step)
            if time.monotonic() - self.reported > REPORT_SECONDS:
                self.report(trainer)
        trainer.evaluation_pending = False
        return False

    def report(self, trainer: Trainer) -> None:
        """Write report.html."""
        if self.run.accelerator.is_main_process:
            write_report(self.run, trainer.result, self.tally)
            self.reported = time.monotonic()

    def _probe_due(self, step: int) -> bool:
        every = self.run.config.probe.every_epochs
        return every > 0 and self.run.due(step, every * self.run.steps_per_epoch)

    def _is_best(self, trainer: Trainer, metrics: dict[str, float]) -> bool:
        """Note the best evaluation; of equal ones the later, which has seen more."""
        metric = self.run.best_by
        if metric not in metrics:
            return False
        value, before = metrics[metric], trainer.best
        if before is not None and before["metric"] != metric:  # changed on resume
            before = None
        worse = before is not None and (
            value > before["value"] if metric == "divergence" else value < before["value"]
        )
        if not worse:
            trainer.best = {"step": trainer.step, "metric": metric, "value": value}
        return not worse

    def _verdict(self, trainer: Trainer, metrics: dict[str, float]) -> str:
        run = self.run
        before = [line for line in run.folder.lines() if line["kind"] == "eval"]
        now = {"epoch": trainer.step / run.steps_per_epoch, **metrics}
        metric = run.best_by if run.best_by != "last" else "agreement1"
        if metric not in metrics:
            metric = "top1"
        if metric not in metrics:
            return "no verdict: there is neither a teacher nor a labeled held-out image"
        warmup = warmup_steps(run.config.schedule, run.total_steps, run.steps_per_epoch)
        found = verdict.judge(
            [*before, now],
            metric=metric,
            num_classes=trainer.student.num_classes,
            share_of_peak=trainer.rate() / run.facts["peak_lr"],
            finished=trainer.step == run.total_steps,
            early=trainer.step < warmup or (not before and trainer.step < run.total_steps),
        )
        if found.kind != "not learning":
            return found.sentence
        return f"{found.sentence}. Likely causes: {'; '.join(self._causes(trainer))}"

    def _causes(self, trainer: Trainer) -> list[str]:
        run = self.run
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
        student = trainer.student.eval()
        return causes(student, self.initial, list(batches), run.teacher)

    def finish(self, trainer: Trainer) -> None:
        """Export the best student and write the last report."""
        run = self.run
        if self.tally is None and run.val:  # resumed after the last evaluation
            self.tally = trainer.evaluate(Preemption())
        if run.accelerator.is_main_process:
            exported = self._take_best(trainer)
            digest = export(trainer.result, run.folder.path / "student", exported["step"])
            run.folder.record("exported", {**exported, "sha256": digest})
            self.report(trainer)
            run.accelerator.print(
                f"student: {run.folder.path / 'student'} (step {exported['step']})\n"
                f"report:  {run.folder.path / 'report.html'}"
            )
        run.accelerator.wait_for_everyone()
        for tracker in run.accelerator.trackers:
            tracker.finish()

    def _take_best(self, trainer: Trainer) -> dict:
        """Load the best checkpoint's network where that was not the last step's."""
        best = trainer.best
        if best is None or best["step"] == trainer.step:
            return best or {"step": trainer.step, "metric": "last", "value": None}
        folder = checkpoint.at(self.run.folder.path / "checkpoints", best["step"])
        problem = checkpoint.damage(folder)
        if problem is None:
            name = "ema" if trainer.ema else "student"
            checkpoint.load_network(folder, name, trainer.result.model)
            return best
        said = f"warning: checkpoint {folder}, the best, is damaged ({problem})"
        if load_exported(self.run.folder.path / "student", best["step"], trainer.result):
            print(f"{said}; student/ has the same network", file=sys.stderr)
            return best
        print(f"{said}; the student of the last step is exported", file=sys.stderr)
        return {"step": trainer.step, "metric": "last", "value": None}
