"""ab.md and report.html of an A/B: scores, differences with intervals, learning curves, times."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from downstream.ab.analysis import Analysis
from downstream.ab.grid import RATES
from downstream.ab.plot import NAMES, curves, forest, judged
from downstream.ab.records import Result
from downstream.ab.statistics import LEVEL, RESAMPLES, Interval, Point
from ssld.ablate.summary import Spread
from ssld.common.metrics import METRICS
from ssld.common.text_table import ABSENT, markdown_table
from ssld.report import page

PROBES = ("knn", "linear")
TIME_NOTE = (
    "Where the mean learning curve over seeds first is at the last value of A's, between two "
    "evaluations on a straight line; seconds are of training alone."
)
PROBE_NOTE = (
    "k nearest neighbours and a linear classifier on the features of the backbone as it came, and "
    "after fine-tuning; on a sample of the images."
)


class Table(NamedTuple):
    """Of the page and of ab.md."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str


def markdown(analysis: Analysis) -> str:
    """ab.md"""
    a, b = analysis.backbones
    lines = [f"# {analysis.task}: A `{a}` against B `{b}`", "", f"From `{analysis.file}`.", ""]
    lines += [f"- {line}" for line in headline(analysis)]
    for table in tables(analysis):
        lines += ["", f"## {table.title}", "", markdown_table(table.head, table.rows)]
        lines += ["", table.note]
    return "\n".join(lines) + "\n"


def headline(analysis: Analysis) -> list[str]:
    """What each comparison shows, a sentence each."""
    known = [(NAMES[name], one) for name, one in analysis.comparisons.items() if one is not None]
    if not known:
        return ["No seed has runs of both yet."]
    lines = []
    for name, one in known:
        x = one.difference
        points = "" if x.flaw else f" ({_points(x.mean)} points of {analysis.label})"
        lines.append(f"{name[:1].upper()}{name[1:]}: {x.verdict}{points}.")
    if judged(analysis) and max(len(one.seeds) for _, one in judged(analysis)) == 1:
        lines.append(
            "One seed has no interval: what another one would give is unknown, so nothing is shown."
        )
    return lines


def tables(analysis: Analysis) -> list[Table]:
    """Scores, differences, times and frozen features, where there are any."""
    shown = [_scores(analysis)]
    if any(analysis.comparisons.values()):
        shown += [_differences(analysis), _times(analysis)]
    if any(run.probe for runs in analysis.results.values() for run in runs.values()):
        shown.append(_probes(analysis))
    return shown


def _note(analysis: Analysis) -> str:
    images = {one.images for one in analysis.comparisons.values() if one is not None}
    note = (
        f"{100 * LEVEL:.0f} % intervals. Over seeds: Student's t on the pairs of runs of one seed. "
    )
    if images - {None}:
        note += (
            f"Over images: {RESAMPLES} draws of the {max(x for x in images if x):,} held-out "
            "images, the same for all runs. Over both: the two added as independent, which decides "
            "the verdict. "
        )
    else:
        note += "The runs kept no record by image, so what other images would give is left out. "
    if any(run.chosen for runs in analysis.results.values() for run in runs.values()):
        note += (
            "Each run counts at its best evaluation (checkpoint.best), which these very images "
            "chose. "
        )
    return note + (
        "The rates of best against best were chosen by these very images. Three comparisons, each "
        f"at its own {100 * LEVEL:.0f} %: no correction for their number is made."
    )


def _scores(analysis: Analysis) -> Table:
    rows = []
    for side, name in enumerate(analysis.backbones):
        spreads = [
            Spread(tuple(x for run in runs.values() if math.isfinite(x := run.score)))
            for runs in (analysis.results[side, rate] for rate in RATES)
        ]
        rows.append(
            [f"{'AB'[side]} {name}", *(f"{x.percent()} ({len(x.points)})" for x in spreads)]
        )
    head = ["backbone", *(f"{rate} (seeds)" for rate in RATES)]
    note = "Mean ± standard deviation (of a sample) over seeds."
    return Table(f"{analysis.label}, %", head, rows, note)


def _differences(analysis: Analysis) -> Table:
    head = ["comparison", "A at", "B at", "seeds", "B less A"]
    head += ["over seeds", "over images", "over both", "verdict"]
    rows = []
    for name, one in analysis.comparisons.items():
        if one is None:
            rows.append([NAMES[name], *[ABSENT] * (len(head) - 1)])
            continue
        x = one.difference
        intervals = map(_interval, (x.over_seeds, x.over_images, x.over_both))
        mean = ABSENT if x.flaw else _points(x.mean)
        rows.append([NAMES[name], *one.rates, str(len(one.seeds)), mean, *intervals, x.verdict])
    return Table("B less A, points", head, rows, _note(analysis))


def _points(share: float) -> str:
    return f"{100 * share:+.2f}"


def _interval(interval: Interval | None) -> str:
    return f"{_points(interval.low)} to {_points(interval.high)}" if interval else ABSENT


def _times(analysis: Analysis) -> Table:
    head = ["comparison", "score, %", "A at step", "B at step", "B's share of A's steps"]
    head += ["A, seconds", "B, seconds"]
    rows = []
    for name, one in analysis.comparisons.items():
        if one is None or one.time_to_score is None:
            continue
        a, b = one.time_to_score.a, one.time_to_score.b
        share = f"{b.step / a.step:.0%}" if a and b and a.step else ABSENT
        row = [NAMES[name], f"{100 * one.time_to_score.score:.2f}", _step(a), _step(b), share]
        rows.append([*row, _seconds(a), _seconds(b)])
    return Table(f"Time to A's last {analysis.label}", head, rows, TIME_NOTE)


def _seconds(point: Point | None) -> str:
    if point is None:
        return ABSENT
    return f"{point.seconds:,.0f}" if point.seconds >= 100 else f"{point.seconds:.1f}"


def _step(point: Point | None) -> str:
    return "not reached" if point is None else f"{point.step:,.0f}"


def _probes(analysis: Analysis) -> Table:
    places = [(key, when) for when in ("before", "after") for key in PROBES]
    rows = []
    for (side, rate), runs in analysis.results.items():
        spreads = [_probe_spread(runs.values(), *place) for place in places]
        backbone = f"{'AB'[side]} {analysis.backbones[side]}"
        rows.append([backbone, rate, *(x.percent() for x in spreads)])
    head = ["backbone", "lr", *(f"{METRICS[key].label} {when}" for key, when in places)]
    return Table("Frozen features, % right", head, rows, PROBE_NOTE)


def _probe_spread(runs: Iterable[Result], key: str, when: str) -> Spread:
    known = (run.probe.get(when, {}).get(key) for run in runs)
    return Spread(tuple(x for x in known if x is not None))


def write_report(analysis: Analysis, path: Path) -> None:
    """Write report.html."""
    page.write_page(
        path,
        "downstream/ab/report.html",
        title=f"{analysis.task}: A against B",
        backbones=analysis.backbones,
        headline=headline(analysis),
        file=analysis.file,
        forest=page.plot("B less A", forest(analysis)) if judged(analysis) else None,
        curves=[
            page.plot(f"{analysis.label} while training, {NAMES[rate]}", curves(analysis, rate))
            for rate in RATES
            if any(run.curve for side in (0, 1) for run in analysis.results[side, rate].values())
        ],
        tables=tables(analysis),
        runs=_links(analysis, path.parent),
    )


def _links(analysis: Analysis, out: Path) -> list[tuple[str, list[tuple[int, str]]]]:
    """(name, [(seed, address)]) of the runs that are there."""
    places = []
    for (side, rate), runs in analysis.results.items():
        links = [
            (seed, (run.folder / "report.html").relative_to(out).as_posix())
            for seed, run in sorted(runs.items())
            if run.folder
        ]
        if links:
            places.append((f"{'AB'[side]} {analysis.backbones[side]}, {rate}", links))
    return places
