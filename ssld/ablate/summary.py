"""Mean and deviation over the seeds, and table.md."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ssld.ablate.grid import SEED, Ablation, Trial
from ssld.ablate.state import Row
from ssld.common.metrics import METRICS, RESULTS, wilson
from ssld.common.text_table import ABSENT

Place = tuple[str, ...]
"""A value on each axis but that of the seeds, as text."""


INTERVALS = {
    "seeds": "bars: 95 % interval of the mean over seeds (Student's t), on the same images",
    "two": "bars: from one of two seeds to the other, too few for an interval",
    "images": "bars: 95 % interval over held-out images (Wilson); one seed, how others differ is "
    "not known",
}
"""What a bar of a plot is, by the kind of `Interval`."""


@dataclass(frozen=True)
class Interval:
    """Of a share."""

    kind: str
    low: float
    high: float


@dataclass(frozen=True)
class Spread:
    """Values of the same settings under several seeds."""

    points: tuple[float, ...]
    images: int | None = None
    """Of which the one value is a share, where it is the only one and that is known."""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.points)

    @property
    def deviation(self) -> float | None:
        """Of a sample, that is with n - 1; None with one seed."""
        return statistics.stdev(self.points) if len(self.points) > 1 else None

    def interval(self) -> Interval | None:
        """How far off the mean may be."""
        count, mean = len(self.points), self.mean
        if count == 1 and self.images:
            return Interval("images", *wilson(mean * self.images, self.images))
        if count < 2 or self.deviation is None:
            return None
        if count == 2:
            return Interval("two", min(self.points), max(self.points))
        from scipy.stats import t  # takes a second, and most sweeps have one seed

        half = float(t.ppf(0.975, count - 1)) * self.deviation / math.sqrt(count)
        return Interval("seeds", max(0.0, mean - half), min(1.0, mean + half))

    def percent(self) -> str:
        if not self.points:
            return ABSENT
        spread = "" if self.deviation is None else f" ± {100 * self.deviation:.2f}"
        return f"{100 * self.mean:.2f}{spread}"


@dataclass(frozen=True)
class Summary:
    """An ablation's results."""

    ablation: Ablation
    rows: dict[tuple[str, str], Row]
    """Of `results.tidy`, by trial and stage."""
    failed: Mapping[str, str]
    """Why, by the trial's name."""

    @property
    def places(self) -> dict[Place, list[Trial]]:
        """The trials of each combination of the axes, that of the seeds left out."""
        places: dict[Place, list[Trial]] = {}
        for trial in self.ablation.trials:
            places.setdefault(trial.others(SEED), []).append(trial)
        return places

    def value(self, trial: Trial, stage: str, metric: str) -> float | None:
        return self.rows[trial.name, stage][metric]

    def spread(self, trials: Sequence[Trial], stage: str, metric: str) -> Spread:
        values = (self.value(trial, stage, metric) for trial in trials)
        return Spread(tuple(x for x in values if x is not None))

    def images(self, trial: Trial, stage: str, metric: str) -> int | None:
        """Held-out images of which a metric is a share; None where it is no share or not known."""
        counts = {"top1": "held_out_labels", "agreement1": "held_out_images"}
        return self.rows[trial.name, stage].get(counts.get(metric, ""))

    def measured(self) -> list[tuple[str, str]]:
        """(stage, metric) of what some trial has."""
        pairs = [(stage, metric) for stage in self.ablation.stages for metric in RESULTS]
        rows = [(stage, row) for (_, stage), row in self.rows.items()]
        return [(s, m) for s, m in pairs if any(x.get(m) is not None for y, x in rows if y == s)]

    def done(self, trial: Trial) -> bool:
        stages = self.ablation.stages
        return all(self.rows[trial.name, stage]["status"] == "done" for stage in stages)

    def several_teachers(self) -> bool:
        """Whether more than one is known by its accuracy."""
        return len({row["teacher_top1"] for row in self.rows.values()} - {None}) > 1


def summarise(ablation: Ablation, rows: Sequence[Row], failed: Mapping[str, str]) -> Summary:
    places = [(trial.name, stage) for trial in ablation.trials for stage in ablation.stages]
    return Summary(ablation, dict(zip(places, rows, strict=True)), failed)


def table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Heading and rows: a combination of the axes each, its means, and how many seeds are done."""
    ablation, measured, several = summary.ablation, summary.measured(), summary.several_teachers()
    head = [axis.name for axis in ablation.compared] or ["all"]
    head += ["teacher top-1"] if several else []
    head += [f"{stage} {METRICS[metric].label}" for stage, metric in measured]
    rows = []
    for place, trials in summary.places.items():
        row = list(place) or [""]
        if several:
            known = summary.spread(trials, ablation.stages[0], "teacher_top1").points
            row.append(Spread(known[:1]).percent())  # seeds do not change it
        row += [summary.spread(trials, stage, metric).percent() for stage, metric in measured]
        finished, count = sum(map(summary.done, trials)), len(trials)
        rows.append([*row, f"{finished}" if finished == count else f"{finished}/{count}"])
    return [*head, "seeds" if has_seeds(ablation) else "trials"], rows


def has_seeds(ablation: Ablation) -> bool:
    return any(axis.name == SEED for axis in ablation.axes)


def explained(summary: Summary) -> str:
    """What the numbers are, in a sentence or two."""
    trials, seeds = summary.ablation.trials, has_seeds(summary.ablation)
    several = summary.several_teachers()
    over = ", mean ± standard deviation (of a sample) over seeds" if seeds else ""
    sentences = [
        f"{sum(map(summary.done, trials))} of {len(trials)} trials done.",
        f"In percent, on the held-out images{over}.",
    ]
    if any(metric == "agreement1" for _, metric in summary.measured()):
        differs = ", which is not the same in all rows" if several else ""
        sentences.append(f"agreement@1 is with a trial's own teacher{differs}.")
    if "fix" in summary.ablation.stages:
        sentences.append(
            "After fix: at the resolution that one half of these images chose, on the other."
        )
    return " ".join(sentences)


def markdown(summary: Summary) -> str:
    """table.md"""
    head, rows = table(summary)
    lines = [
        f"# {summary.ablation.title}",
        "",
        f"From `{summary.ablation.file}`. {explained(summary)}",
        "",
    ]
    lines += [_line(head), "|" + "---|" * len(head), *map(_line, rows)]
    if summary.failed:
        lines += ["", "Failed:", ""]
        lines += [f"- `{name}`: {why}" for name, why in summary.failed.items()]
    return "\n".join(lines) + "\n"


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |"
