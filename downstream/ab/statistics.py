"""Is B better than A, and by how much? Differences with intervals, and the time to a score.

Two things make a measured difference uncertain: the seeds, which decide the fresh weights, the
order and the views of a training run, and the images on which it was evaluated. Each has an
interval of its own here, and both together a third, which decides the verdict:

- over seeds: the runs of one seed share all but the backbone, so they are a pair; Student's t on
  the differences of the pairs (Student 1908, "The probable error of a mean").
- over images: percentile bootstrap (Efron 1979). A resample draws as many held-out images as there
  are, with replacement, the same for A, for B and for every seed, as these saw the same images; its
  value is the mean over seeds of B's score less A's on that draw.
- over both: the two, taken as independent, added as Zou and Donner (2008, "Construction of
  confidence limits about effect measures", equations 1 and 2) add the limits of two estimates:
  the distances to the lower limits as a root of the sum of squares, and so those to the upper ones.
  A bit wide, as what seeds and images do together counts in both.

All in float64; nothing here reads a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from ssld.common.metrics import too_weak

CONFIDENCE = 0.95
RESAMPLES = 2000
"""Enough for the 2.5 % and 97.5 % points (Efron & Tibshirani 1993, section 14.3: at least 1000)."""
NO_SCORE = 1e-3
"""A score below it is none: the share from which a dense run's verdict is "not learning"."""
INDICES_AT_A_TIME = 4_000_000
"""Of images that are drawn, to save memory."""

Statistic = Callable[[np.ndarray], np.ndarray]
"""Draws of images, int64 [r, n] -> the score on each draw, float64 [r]."""


@dataclass(frozen=True)
class Interval:
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """B's score less A's."""

    by_seed: tuple[float, ...]
    """Of each pair of runs."""
    over_seeds: Interval | None
    """None with one seed."""
    over_images: Interval | None
    """None where the runs kept no record by image."""
    over_both: Interval | None
    """None where one of the two is."""
    flaw: str | None = None
    """Why the scores say nothing of A and B, see `flaw_of`."""
    caution: str | None = None
    """See `too_weak`, of the means of A and of B."""

    @property
    def mean(self) -> float:
        return math.fsum(self.by_seed) / len(self.by_seed)

    @property
    def deciding(self) -> Interval | None:
        """The interval of the verdict: over both, or over seeds where there is no other."""
        return self.over_both or self.over_seeds

    @property
    def verdict(self) -> str:
        """`A better`, `B better` or `no difference shown`: whether the interval excludes 0; `no
        verdict: ...` where the scores say nothing."""
        if self.flaw:
            return f"no verdict: {self.flaw}"
        interval = self.deciding
        if interval is None or interval.low <= 0 <= interval.high:
            return "no difference shown"
        return "B better" if interval.low > 0 else "A better"

    @property
    def doubt(self) -> str:
        """To be said after the verdict."""
        return f", but {self.caution}" if self.caution else ""


def compare(
    a: Sequence[float],
    b: Sequence[float],
    records: Sequence[tuple[Statistic, Statistic]] = (),
    *,
    images: int = 0,
    seed: int = 0,
) -> Difference:
    """Scores of A and of B, one of each seed in the same order -> their difference.

    Args:
        records: for each seed the statistics of A and of B; none leaves the images out.
        images: how many each of them was evaluated on.
        seed: of the draws.
    """
    assert len(a) == len(b) > 0 and len(records) in (0, len(a)), (len(a), len(b), len(records))
    by_seed = tuple(float(y) - float(x) for x, y in zip(a, b, strict=True))
    flaw = flaw_of([*a, *b])
    if flaw:
        return Difference(by_seed, None, None, None, flaw)
    seeds = t_interval(by_seed)
    over_images = bootstrap(records, images, seed=seed) if records and images > 1 else None
    mean = math.fsum(by_seed) / len(by_seed)
    both = added(mean, seeds, over_images) if seeds and over_images else None
    caution = too_weak([math.fsum(scores) / len(scores) for scores in (a, b)])
    return Difference(by_seed, seeds, over_images, both, caution=caution)


def flaw_of(scores: Sequence[float]) -> str | None:
    """Why scores of runs cannot tell two backbones apart: nothing was learned, or measured."""
    missing = sum(not math.isfinite(score) for score in scores)
    if missing:
        return f"{missing} of {len(scores)} runs have no score that is a number"
    if max(scores) < NO_SCORE:
        return (
            f"none of the {len(scores)} runs learned anything (all scores are below "
            f"{100 * NO_SCORE:g} %), so nothing is compared; train longer, or see the runs' reports"
        )
    if len(scores) > 2 and min(scores) == max(scores):
        return (
            f"all {len(scores)} runs have the same score to the last digit ({100 * scores[0]:.2f} "
            "%), as networks do that always say the same; see the runs' reports"
        )
    return None


def t_interval(values: Sequence[float], level: float = CONFIDENCE) -> Interval | None:
    """Mean plus and minus t * s / sqrt(n), with n - 1 degrees of freedom and s of a sample; None
    for fewer than two values, which say nothing about their spread."""
    n = len(values)
    if n < 2:
        return None
    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * deviation / math.sqrt(n)
    return Interval(mean - half, mean + half)


def bootstrap(
    records: Sequence[tuple[Statistic, Statistic]],
    images: int,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    level: float = CONFIDENCE,
) -> Interval:
    """Percentile interval of the mean over seeds of B's statistic less A's, over draws of images.

    Draws on which a statistic is not defined (no image of any class, say) are left out.
    """
    generator, parts = np.random.default_rng(seed), []
    at_a_time = max(1, INDICES_AT_A_TIME // images)
    for start in range(0, resamples, at_a_time):
        draws = generator.integers(images, size=(min(at_a_time, resamples - start), images))
        parts.append(np.mean([b(draws) - a(draws) for a, b in records], axis=0))  # [r]
    low, high = np.nanquantile(np.concatenate(parts), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def added(mean: float, one: Interval, other: Interval) -> Interval:
    """The limits of `mean` when two independent sources of error have these limits around it."""
    below = math.hypot(*(max(0.0, mean - x.low) for x in (one, other)))
    above = math.hypot(*(max(0.0, x.high - mean) for x in (one, other)))
    return Interval(mean - below, mean + above)


@dataclass(frozen=True)
class Point:
    """Of a learning curve."""

    step: float
    seconds: float
    """Of training, without evaluations."""
    score: float


def mean_curve(curves: Sequence[Sequence[Point]]) -> list[Point]:
    """The mean over runs, at the steps that all of them have."""
    by_step = [{point.step: point for point in curve} for curve in curves]
    steps = sorted(set.intersection(*(set(x) for x in by_step))) if by_step else []
    mean = []
    for step in steps:
        here = [x[step] for x in by_step]
        seconds = math.fsum(p.seconds for p in here) / len(here)
        mean.append(Point(step, seconds, math.fsum(p.score for p in here) / len(here)))
    return mean


def time_to_score(curve: Sequence[Point], score: float) -> Point | None:
    """Where a learning curve first is at `score`, between two evaluations on a straight line; the
    first evaluation if that is there already; None where the score is not reached."""
    for before, after in zip([None, *curve], curve, strict=False):
        if after.score < score:
            continue
        if before is None:
            return after
        share = (score - before.score) / (after.score - before.score)
        step = before.step + share * (after.step - before.step)
        return Point(step, before.seconds + share * (after.seconds - before.seconds), score)
    return None
