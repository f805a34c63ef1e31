"""What detection and segmentation share as tasks of the one loop (`ssld.engine.loop.Task`)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from downstream.dense import trained
from ssld.common.metrics import METRICS
from ssld.common.streams import is_terminal
from ssld.data.loading import eval_rows, train_rows
from ssld.data.unreadable import AnyBatch, Unreadables, to_device
from ssld.data.workers import Rows, load
from ssld.engine.start import Run

DRAWN = 16
"""Held-out images that are drawn at every evaluation."""
LATE = 1 / 3
"""Share of a run after which a score of 0 is a symptom."""
Made = TypeVar("Made", bound=AnyBatch)


def training(
    run: Run, make: Callable[[Rows], Made], first_step: int, last_step: int
) -> Iterator[Made]:
    """This process's batches of steps [first_step, last_step), as `make` makes them."""
    config = run.config
    rows = train_rows(
        run.order,
        batch_size=config.batch_size,
        rank=run.rank,
        world=run.world,
        first_step=first_step,
        last_step=last_step,
        accumulate=config.accumulate,
    )
    pin = run.accelerator.device.type == "cuda"
    return load(make, rows, workers=config.data.workers, pin=pin)


def held_out(run: Run, make: Callable[[Rows], Made]) -> Iterator[Made]:
    """This process's held-out images one by one, each once over all processes.

    One by one, because what is found in an image must not depend on the size to which others in its
    batch are padded, nor on which process it falls to.
    """
    config = run.config
    unreadables = Unreadables(run.val, config.data.max_unreadable)
    sizes = [len(source) for source in run.val]
    rows = eval_rows(sizes, batch_size=1, rank=run.rank, world=run.world)
    pin = run.accelerator.device.type == "cuda"
    quiet = run.rank > 0 or not is_terminal(sys.stderr)
    with tqdm(total=sum(sizes), desc="evaluate", unit="img", disable=quiet, leave=False) as bar:
        for batch in load(make, rows, workers=config.data.workers, pin=pin):
            unreadables.add(batch)
            yield to_device(batch, run.accelerator.device)
            bar.update(min(run.world, sum(sizes) - bar.n))


def drawn_numbers(images: int) -> list[int]:
    """Which of so many held-out images are drawn: `DRAWN`, evenly spread."""
    return sorted({i * images // DRAWN for i in range(DRAWN)}) if images else []


def verdict(
    metric: str, metrics: Mapping[str, float], before: Sequence[Mapping[str, Any]], share: float
) -> str:
    """How it goes, in a sentence.

    Args:
        metrics: of this evaluation.
        before: the lines of the earlier ones.
        share: of the run that is done.
    """
    if metric not in metrics:
        return "no verdict: no held-out image has anything to be found"
    value, name = metrics[metric], METRICS[metric].label
    done = "finished, " if share >= 1 else ""
    if metrics.get("classes", 2) < 2:
        return (
            f"no verdict: held-out pixels are of one class alone, so that a {name} of {value:.4f} "
            "says nothing; hold out images of the other classes, too"
        )
    if value < 1e-3 and share >= LATE:
        return (
            f"{done}not learning: {name} is {value:.4f} after {share:.0%} of the run. Likely "
            "causes: far too few steps, classes of data.train and data.val that mean different "
            "things, annotations that do not fit their images (look at the pictures), a learning "
            "rate that is too high or too low"
        )
    earlier = [(line[metric], line["step"]) for line in before if metric in line]
    if not earlier:
        return f"{done}{name} {value:.4f}, the first evaluation"
    best, step = max(earlier)
    if value >= best:
        return f"{done}{name} {value:.4f}, the best so far (before: {best:.4f})"
    return f"{done}{name} {value:.4f}, below the best, {best:.4f} at step {step:,}"


class AnnotatedTask:
    """The part of a task that does not depend on what is to be found in images."""

    exported = trained.FOLDER
    metric: str
    """What decides where `checkpoint.best` says `last`."""

    def best_by(self, run: Run) -> str:
        """The metric that decides which checkpoint is the best, or last."""
        return run.config.checkpoint.best  # type: ignore[attr-defined]

    def further_metrics(self, run: Run, network: Any, step: int) -> dict[str, float]:
        """None: all are in the score."""
        return {}

    def noted(self, network: Any, metrics: Mapping[str, Any], metric: str) -> dict[str, Any]:
        """What is compared of an evaluation: its value, as a score of 0 is behind all others."""
        return {"metric": metric, "value": metrics[metric], "symptoms": []}

    def verdict(
        self,
        run: Run,
        network: Any,
        metrics: dict[str, float],
        *,
        step: int,
        rate: float,
        initial: Any,
    ) -> str:
        """How it goes, in a sentence."""
        best = self.best_by(run)
        before = run.folder.history.evaluations()
        metric = self.metric if best == "last" else best
        return verdict(metric, metrics, before, step / run.total_steps)


def ids_of(run: Run, numbers: np.ndarray) -> list[str]:
    """Ids of held-out images by their numbers."""
    ids = [source.sample_id(i) for source in run.val for i in range(len(source))]
    return [ids[i] for i in numbers]
