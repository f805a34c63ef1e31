"""From the finished runs of an A/B to what is said of it: comparisons, and ab.json."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from downstream.ab.grid import RATES, ABConfig
from downstream.ab.records import MEASURES, Result
from downstream.ab.statistics import Difference, Point, compare, mean_curve, time_to_score
from ssld.common.errors import InputError
from ssld.common.metrics import METRICS

Results = Mapping[tuple[int, str], Mapping[int, Result]]
"""{(0 for A or 1 for B, learning rate): {seed: result}} of what is finished."""


@dataclass(frozen=True)
class TimeToScore:
    """How long the mean learning curves of A and B take to the last score of A's."""

    score: float
    a: Point | None
    b: Point | None
    """None: not reached."""


@dataclass(frozen=True)
class Comparison:
    """A at one learning rate against B at one."""

    rates: tuple[str, str]
    seeds: tuple[int, ...]
    images: int | None
    """On which each run was evaluated, where it kept a record."""
    difference: Difference
    time_to_score: TimeToScore | None


@dataclass(frozen=True)
class Analysis:
    """All that is said of an A/B."""

    task: str
    file: str
    backbones: tuple[str, str]
    results: Results
    same: Comparison | None
    """Both at the same learning rate in all layers."""
    tuned: Comparison | None
    """Both at the preset of distilled backbones."""
    best: Comparison | None
    """Each at the rate of its best mean score, which the held-out images themselves chose."""
    key: str
    """Of the metric that all runs are judged by."""

    @property
    def label(self) -> str:
        return METRICS[self.key].label

    @property
    def comparisons(self) -> dict[str, Comparison | None]:
        return {"same": self.same, "tuned": self.tuned, "best": self.best}


def analyse(config: ABConfig, results: Results) -> Analysis:
    """
    Raises:
        InputError: runs of a pair were evaluated on different images, or by different metrics.
    """
    key = _key(config.task, results)
    same, tuned = (_compare(results, (rate, rate)) for rate in RATES)
    of_a, of_b = (_best_rate(results, side) for side in (0, 1))
    best = _compare(results, (of_a, of_b)) if of_a and of_b else None
    a, b = config.backbones
    return Analysis(config.task, config.file, (a, b), results, same, tuned, best, key)


def _key(task: str, results: Results) -> str:
    keys = {x.key for runs in results.values() for x in runs.values() if x.key}
    if len(keys) > 1:
        labels = " and ".join(sorted(METRICS[key].label for key in keys))
        raise InputError(
            f"the runs are judged by different metrics ({labels}): has detector.name or data.val "
            "changed? Start anew with another --out"
        )
    return keys.pop() if keys else MEASURES[task].keys[-1]


def _best_rate(results: Results, side: int) -> str | None:
    """The learning rate with the best mean score."""
    means = {
        rate: statistics.fmean(result.score for result in runs.values())
        for (of, rate), runs in results.items()
        if of == side and runs
    }
    return max(means, key=lambda rate: means[rate], default=None)


def _compare(results: Results, rates: tuple[str, str]) -> Comparison | None:
    """None where no seed has both runs."""
    a, b = (results[side, rate] for side, rate in enumerate(rates))
    seeds = tuple(sorted(a.keys() & b.keys()))
    if not seeds:
        return None
    pairs = [(a[seed], b[seed]) for seed in seeds]
    images = _images(pairs, seeds)
    records = [(x.record.statistic, y.record.statistic) for x, y in pairs if x.record and y.record]
    difference = compare(
        [x.score for x, _ in pairs],
        [y.score for _, y in pairs],
        records if images else (),
        images=images or 0,
    )
    of_a, of_b = (mean_curve([pair[side].curve for pair in pairs]) for side in (0, 1))
    time = None
    if of_a and of_b and not difference.flaw:
        score = of_a[-1].score
        time = TimeToScore(score, time_to_score(of_a, score), time_to_score(of_b, score))
    return Comparison(rates, seeds, images, difference, time)


def _images(pairs: Sequence[tuple[Result, Result]], seeds: Sequence[int]) -> int | None:
    """How many all runs were evaluated on; None where one of them kept no record."""
    records = [run.record for pair in pairs for run in pair]
    ids = [record.ids for record in records if record is not None]
    if len(ids) < len(records):
        return None
    other = next((i for i, of_run in enumerate(ids) if of_run != ids[0]), None)
    if other is not None:
        raise InputError(
            f"the runs of seed {seeds[0]} and seed {seeds[other // 2]} were not evaluated on the "
            f"same images ({len(ids[0])} and {len(ids[other])}): has data.val changed, or can "
            "an image not be read any more? Start anew with another --out"
        )
    return len(ids[0])


def as_json(analysis: Analysis) -> dict[str, Any]:
    """ab.json"""
    runs = [
        {"backbone": analysis.backbones[side], "lr": rate, "seed": seed}
        | {"score": _finite(result.score)}
        | {f"{key}_{when}": x for when, known in result.probe.items() for key, x in known.items()}
        for (side, rate), by_seed in analysis.results.items()
        for seed, result in sorted(by_seed.items())
    ]
    comparisons = analysis.comparisons.items()
    return {
        "task": analysis.task,
        "metric": analysis.key,
        "file": analysis.file,
        "backbones": dict(zip("AB", analysis.backbones, strict=True)),
        "runs": runs,
        "differences_b_less_a": {name: _as_json(x) for name, x in comparisons if x is not None},
    }


def _as_json(comparison: Comparison) -> dict[str, Any]:
    difference, time = comparison.difference, comparison.time_to_score
    return {
        "lr": comparison.rates,
        "seeds": comparison.seeds,
        "images": comparison.images,
        **asdict(difference),
        "by_seed": [_finite(x) for x in difference.by_seed],
        "mean": None if difference.flaw else difference.mean,
        "verdict": difference.verdict,
        "to_last_score_of_a": time and asdict(time),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
