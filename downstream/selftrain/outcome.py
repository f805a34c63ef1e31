"""What came of self-training: the score of each stage, and differences, with intervals over the
held-out images (percentile bootstrap, `downstream/ab/statistics.py`). One run each says nothing of
other seeds, whose spread may be larger."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from downstream.ab.records import MEASURES, Record, Result, read_result
from downstream.ab.statistics import NO_SCORE, Interval, bootstrap, flaw_of
from downstream.dense.generated import MANIFEST
from downstream.selftrain.recipe import LABELS, TRAINED, Selftrain
from ssld.common.errors import InputError
from ssld.common.files import read_object
from ssld.common.metrics import METRICS, too_weak

PAIRS = (("student", "teacher"), ("student", "baseline"), ("student", "oracle"))
"""Of which the first is held against the second."""
AGAIN = "the same command makes it again"


@dataclass(frozen=True)
class Stage:
    """One network."""

    name: str
    folder: Path
    steps: int | None
    human: int
    """Images with human annotations that it was trained on."""
    generated: int
    result: Result | None
    """None where the run is not known, as of a copy of a network."""
    interval: Interval | None
    """Of the score."""
    problem: str | None = None
    """Why there is no result."""


@dataclass(frozen=True)
class Difference:
    """The score of one stage less that of another."""

    of: str
    less: str
    mean: float
    interval: Interval | None
    """None where the two were not evaluated on the same images."""
    flaw: str | None
    """Why the scores say nothing."""
    steps: tuple[int, int] | None = None
    """Of both, where they are not the same."""
    caution: str | None = None
    """See `too_weak`."""

    @property
    def verdict(self) -> str:
        if self.flaw:
            return f"no verdict: {self.flaw}"
        if self.interval is None:
            return "no interval: they were not evaluated on the same held-out images"
        if self.interval.low <= 0 <= self.interval.high:
            return "no difference shown"
        return f"{self.of if self.interval.low > 0 else self.less} better on these images"


@dataclass(frozen=True)
class Outcome:
    """Of all stages."""

    task: str
    key: str
    """Of the metric."""
    file: str
    images: int | None
    """Held-out ones of the student's record."""
    stages: list[Stage]
    differences: list[Difference]
    labels: dict[str, Any]
    """What `pseudo_labels.json` says."""
    warning: str | None = None
    """See `teacher_warning`."""

    @property
    def chosen(self) -> bool:
        """Whether the held-out images chose a step that was exported."""
        return any(stage.result.chosen for stage in self.stages if stage.result)


def teacher_warning(recipe: Selftrain) -> str | None:
    """What is to be said of a teacher that learned nothing: its labels say nothing, either."""
    result = _stage("teacher", Path(recipe.teacher), recipe.task).result
    if result is None or result.score >= NO_SCORE:
        return None
    label = METRICS[result.key or MEASURES[recipe.task].keys[-1]].label
    return (
        f"the teacher learned nothing ({label} {result.score:.4f} on held-out images), so its "
        f"labels say nothing, either: train it longer, or see {recipe.teacher}/report.html"
    )


def compare(recipe: Selftrain) -> Outcome:
    """Read all stages, which are complete.

    Raises:
        InputError: a file of a stage is damaged.
    """
    places = {name: recipe.out / name for name in TRAINED if name in recipe.configs}
    if recipe.given_teacher:
        places = {"teacher": Path(recipe.given_teacher), **places}
    if recipe.teacher_is_baseline:
        places = {"teacher": places["teacher"], "baseline": places["teacher"], **places}
    stages = {name: _stage(name, folder, recipe.task) for name, folder in places.items()}
    pairs = [(stages[a], stages[b]) for a, b in PAIRS if a in stages and b in stages]
    differences = [x for x in (_difference(*pair) for pair in pairs) if x is not None]
    student = stages["student"].result
    return Outcome(
        recipe.task,
        (student and student.key) or MEASURES[recipe.task].keys[-1],
        recipe.file,
        len(student.record.ids) if student and student.record else None,
        list(stages.values()),
        differences,
        read_object(recipe.out / LABELS / MANIFEST, AGAIN),
        teacher_warning(recipe),
    )


def _stage(name: str, folder: Path, task: str) -> Stage:
    try:
        result = read_result(folder, task)
        facts = read_object(folder / "run.json", AGAIN)
        settings = read_object(folder / "config.yaml", AGAIN)
    except (InputError, OSError) as error:
        if name != "teacher":
            raise
        return Stage(name, folder, None, 0, 0, None, None, str(error))  # a copy of its network
    sets = settings["data"].get("generated") or []
    labeled = settings.get("classification", {}).get("train") or []
    counts = {path: count for path, count in facts["images"].items() if path not in labeled}
    generated = sum(count for path, count in counts.items() if path in sets)
    human = sum(counts.values()) - generated
    return Stage(name, folder, facts["steps"], human, generated, result, _interval(result))


def _interval(result: Result) -> Interval | None:
    if result.record is None or len(result.record.ids) < 2 or not math.isfinite(result.score):
        return None
    pair = (lambda draws: np.zeros(len(draws)), result.record.statistic)
    return bootstrap([pair], len(result.record.ids), seed=0)


def _difference(one: Stage, other: Stage) -> Difference | None:
    if one.result is None or other.result is None or one.result.key != other.result.key:
        return None
    scores = [other.result.score, one.result.score]
    flaw, interval = flaw_of(scores), None
    records = other.result.record, one.result.record
    if not flaw and _same_images(*records):
        a, b = (record.statistic for record in records if record)
        interval = bootstrap([(a, b)], len(records[0].ids if records[0] else ()), seed=0)
    steps = None
    if one.steps and other.steps and one.steps != other.steps:
        steps = one.steps, other.steps
    caution = None if flaw else too_weak(scores)
    return Difference(one.name, other.name, scores[1] - scores[0], interval, flaw, steps, caution)


def _same_images(a: Record | None, b: Record | None) -> bool:
    return a is not None and b is not None and a.ids == b.ids and len(a.ids) > 1
