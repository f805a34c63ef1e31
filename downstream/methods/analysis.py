"""From the finished runs of all methods to what is said of them: scores, differences, costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from downstream.ab.records import MEASURES, Result, read_result
from downstream.ab.statistics import Difference, compare
from downstream.dense.generated import MANIFEST
from downstream.methods.config import ORACLE, SUPERVISED
from downstream.methods.plan import RECIPES, Plan, Trial, unequal
from ssld.common.errors import InputError
from ssld.common.files import read_object
from ssld.common.metrics import METRICS

AGAIN = "the same command makes it again"
AGAINST = (SUPERVISED, ORACLE)
"""What the others are held against."""


@dataclass(frozen=True)
class Cost:
    """Images that go through the network, of any size, each as often as it does."""

    student: int
    """Forward and backward, those of the training of a teacher among them."""
    teacher: int
    """Forward alone."""


@dataclass(frozen=True)
class Row:
    """A method with a share of the labels."""

    method: str
    share: float
    """1 of the oracle."""
    results: Mapping[int, Result]
    """By seed."""
    differences: Mapping[str, Difference]
    """From those of AGAINST that there are."""
    cost: Cost
    """Of one run, the first."""


@dataclass(frozen=True)
class Analysis:
    """All that is said."""

    task: str
    file: str
    key: str
    """Of the metric."""
    images: int | None
    """Held-out ones."""
    rows: list[Row]
    out: Path
    unequal: list[str]
    """Sentences about what is not the same for all methods."""

    @property
    def label(self) -> str:
        return METRICS[self.key].label


def analyse(plan: Plan) -> Analysis:
    """Read all runs, which are complete.

    Raises:
        InputError: a file is damaged; runs were evaluated on different images.
    """
    results: dict[tuple[str, float], dict[int, Result]] = {}
    for trial in plan.trials():
        found = read_result(_network(plan, trial), plan.task)
        results.setdefault((trial.method, trial.share), {})[trial.seed] = found
    images = _images(results)
    order = sorted(results, key=lambda place: (place[1], plan.methods.index(place[0])))
    rows = []
    for method, share in order:
        of_method = results[method, share]
        others = {name: results.get((name, 1.0 if name == ORACLE else share)) for name in AGAINST}
        differences = {
            name: _difference(other, of_method, images)
            for name, other in others.items()
            if other and other is not of_method and method != ORACLE
        }
        cost = _cost(plan, Trial(method, share, min(of_method)))
        rows.append(Row(method, share, of_method, differences, cost))
    first = next(iter(results[order[0]].values()))
    key = first.key or MEASURES[plan.task].keys[-1]
    return Analysis(plan.task, plan.file, key, images, rows, plan.out, unequal(plan))


def _network(plan: Plan, trial: Trial) -> Path:
    """The run folder of what a method ends in."""
    folder = trial.folder(plan.out)
    return folder / "student" if trial.method in RECIPES else folder


def _images(results: Mapping[Any, Mapping[int, Result]]) -> int | None:
    """How many all runs were evaluated on; None where one of them kept no record."""
    records = [x.record for runs in results.values() for x in runs.values()]
    ids = [record.ids for record in records if record is not None]
    if len(set(ids)) > 1:
        raise InputError(
            f"the runs were not evaluated on the same images ({min(map(len, ids))} and "
            f"{max(map(len, ids))}): has data.val changed? Start anew with another --out"
        )
    return len(ids[0]) if len(ids) == len(records) else None


def _difference(a: Mapping[int, Result], b: Mapping[int, Result], images: int | None) -> Difference:
    pairs = [(a[seed], b[seed]) for seed in sorted(a.keys() & b.keys())]
    records = [(x.record.statistic, y.record.statistic) for x, y in pairs if x.record and y.record]
    scores = [x.score for x, _ in pairs], [y.score for _, y in pairs]
    return compare(*scores, records if images else (), images=images or 0)


def _cost(plan: Plan, trial: Trial) -> Cost:
    folder = _network(plan, trial)
    settings = read_object(folder / "config.yaml", AGAIN)
    steps = read_object(folder / "run.json", AGAIN)["steps"]
    trained = steps * (settings["batch_size"] + _classified(settings))
    if trial.method in RECIPES:
        before = _cost(plan, Trial(SUPERVISED, trial.share, trial.seed))
        return Cost(trained + before.student, _labeling(trial.folder(plan.out) / "labels"))
    if trial.method != "sed":
        return Cost(trained, 0)
    unlabeled = trained * settings["data"]["unlabeled_per_labeled"]
    consistency = settings["consistency"]
    scaled, distilled = (consistency[f"{x}_weight"] > 0 for x in ("scale", "distill"))
    views = (scaled or distilled) + scaled  # as of `ConsistencyConfig.work`
    return Cost(trained + unlabeled * views, unlabeled * distilled)


def _classified(settings: dict[str, Any]) -> int:
    """Labeled images of a step, of joint training with classes."""
    section = settings["classification"]
    return (section["batch_size"] or settings["batch_size"]) if section["train"] else 0


def _labeling(labels: Path) -> int:
    """Views that a teacher saw of the images that it annotated."""
    manifest = read_object(labels / MANIFEST, AGAIN)
    test = manifest["settings"]["test"]
    return manifest["images"]["annotated"] * len(test["scales"]) * (1 + test["flip"])


def as_json(analysis: Analysis) -> dict[str, Any]:
    """methods.json"""
    return {
        "task": analysis.task,
        "metric": analysis.key,
        "file": analysis.file,
        "held_out_images": analysis.images,
        "rows": [
            {
                "method": row.method,
                "share": row.share,
                "scores": {seed: _finite(x.score) for seed, x in sorted(row.results.items())},
                "differences": {
                    f"less_{name}": {
                        **asdict(x),
                        "by_seed": [_finite(value) for value in x.by_seed],
                        "mean": None if x.flaw else x.mean,
                        "verdict": verdict(row.method, name, x),
                    }
                    for name, x in row.differences.items()
                },
                "student_passes": row.cost.student,
                "teacher_passes": row.cost.teacher,
            }
            for row in analysis.rows
        ],
    }


def verdict(method: str, other: str, difference: Difference) -> str:
    """What a difference shows."""
    said = difference.verdict
    return {"A better": f"{other} better", "B better": f"{method} better"}.get(said, said)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
