"""What follows from an evaluation: verdict, best checkpoint, export, report."""

from __future__ import annotations

import sys
import time
from typing import Any, Generic

from torch import Tensor

from ssld.common.errors import attempt
from ssld.common.metrics import rank
from ssld.engine import checkpoint
from ssld.engine.checkpoint import load_exported
from ssld.engine.preemption import Preemption
from ssld.engine.processes import failing_together
from ssld.engine.progress import Progress
from ssld.engine.task import B, N, R, S, Task
from ssld.engine.trainer import Trainer

REPORT_SECONDS = 60.0
"""Least time between two reports of a run that goes on."""


class Evaluator(Generic[R, B, N, S]):
    """Evaluates one run.

    Args:
        network: before the first step; its parameters are copied on the main process.
    """

    def __init__(self, run: R, task: Task[R, B, N, S], network: N) -> None:
        self.run, self.task = run, task
        self.initial: dict[str, Tensor] = {}
        if run.accelerator.is_main_process:
            named = network.model.named_parameters()
            self.initial = {name: p.detach().cpu().clone() for name, p in named}
        self.score: S | None = None
        self.reported, self.begun = -REPORT_SECONDS, time.monotonic()
        self.folder = run.folder.path / task.exported

    def run_on(self, trainer: Trainer[R, B, N, S], progress: Progress, stop: Preemption) -> bool:
        """Evaluate, and do everything that follows from it; True when a signal cut it short."""
        run, task, step = self.run, self.task, trainer.step
        score = trainer.evaluate(stop)
        if score is None:
            return True
        self.score, metrics = score, score.metrics()
        metrics |= task.further_metrics(run, trainer.result, step)
        improved = self._is_best(trainer, metrics)
        with failing_together(run.accelerator):
            if run.accelerator.is_main_process:
                self._write(trainer, progress, score, metrics, improved)
        trainer.evaluation_pending = False
        return False

    def _write(
        self,
        trainer: Trainer[R, B, N, S],
        progress: Progress,
        score: S,
        metrics: dict[str, float],
        improved: bool,
    ) -> None:
        """What follows on the main process: line, export, report."""
        run, task, step = self.run, self.task, trainer.step
        verdict = task.verdict(
            run, trainer.student, metrics, step=step, lr=trainer.lr(), initial=self.initial
        )
        progress.log_evaluation(step, metrics, verdict)
        if improved:
            task.export(trainer.result, self.folder, step)
        task.keep(run, score, step, improved)
        # `finish` writes one next where it is complete.
        if not trainer.complete and time.monotonic() - self.reported > REPORT_SECONDS:
            self.report(trainer)

    def report_when_due(self, trainer: Trainer[R, B, N, S]) -> None:
        """Of a run between two evaluations, which may be hours: report.html is its live view."""
        if time.monotonic() - max(self.reported, self.begun) > REPORT_SECONDS:
            self.report(trainer)

    def report(self, trainer: Trainer[R, B, N, S]) -> None:
        """Write report.html; a run goes on without one."""
        if self.run.accelerator.is_main_process:
            write = self.task.write_report
            attempt("report.html", lambda: write(self.run, trainer.result, self.score))
            self.reported = time.monotonic()

    def _is_best(self, trainer: Trainer[R, B, N, S], metrics: dict[str, float]) -> bool:
        """Note the best evaluation by `rank`; of equal ones the later, which has seen more."""
        metric = self.task.monitor(self.run)
        if metric not in metrics:
            return False
        before = trainer.best
        if before is not None and before["metric"] != metric:  # changed on resume
            before = None
        if before is not None and "symptoms" not in before:  # by an ssld that knew of none
            before = trainer.best = self._noted_again(before, trainer)
        now = {"step": trainer.step, **self.task.noted(trainer.result, metrics, metric)}
        better = before is None or rank(now) > rank(before)
        trainer.no_better = 0 if better else trainer.no_better + 1
        if before is not None and rank(now) < rank(before):
            return False
        trainer.best = now
        return True

    def _noted_again(self, best: dict[str, Any], trainer: Trainer[R, B, N, S]) -> dict[str, Any]:
        lines = self.run.folder.history.evaluations()
        line = next((x for x in lines if x["step"] == best["step"]), None)
        if line is None:
            return {**best, "symptoms": []}
        return {**best, **self.task.noted(trainer.result, line, best["metric"])}

    def finish(self, trainer: Trainer[R, B, N, S]) -> None:
        """Export the best network and write the last report.

        Raises:
            RunFailed: one of them cannot be written.
        """
        run = self.run
        if self.score is None and run.val:  # resumed after the last evaluation
            self.score = trainer.evaluate(Preemption())
        with failing_together(run.accelerator):
            if run.accelerator.is_main_process:
                self._write_last(trainer)
        for tracker in run.accelerator.trackers:
            attempt(f"the end of tracker {tracker.name}", tracker.finish)

    def _write_last(self, trainer: Trainer[R, B, N, S]) -> None:
        run, exported = self.run, self._take_best(trainer)
        if trainer.step < run.total_steps:
            run.accelerator.print(
                f"ended after {trainer.step:,} of {run.total_steps:,} steps: none of the last "
                f"{trainer.no_better} evaluations was better (patience)"
            )
        digest = self.task.export(trainer.result, self.folder, exported["step"])
        if self.score is not None and exported["step"] == trainer.step:
            self.task.keep(run, self.score, trainer.step, True)
        run.folder.record("exported", {**exported, "sha256": digest})
        self.report(trainer)
        run.accelerator.print(
            f"{self.task.exported + ':':<8} {self.folder} (step {exported['step']})\n"
            f"report:  {run.folder.path / 'report.html'}"
        )

    def _take_best(self, trainer: Trainer[R, B, N, S]) -> dict[str, Any]:
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
        warning = f"warning: checkpoint {folder}, the best, is damaged ({problem})"
        if load_exported(self.folder, best["step"], trainer.result):
            print(f"{warning}; {self.folder.name}/ has the same network", file=sys.stderr)
            return best
        print(f"{warning}; the {self.task.exported} of the last step is exported", file=sys.stderr)
        return {"step": trainer.step, "metric": "last", "value": None}
