"""ab.md and report.html of an A/B: scores, differences with intervals, learning curves, times."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from downstream.ab.analysis import Analysis, Comparison
from downstream.ab.grid import RATES
from downstream.ab.statistics import CONFIDENCE, RESAMPLES, Difference, Interval, Point, mean_curve
from ssld.ablate.summary import Spread
from ssld.common.metrics import METRICS
from ssld.common.text_table import ABSENT, markdown_table
from ssld.report import page, plots

PROBES = ("knn", "linear")
TIME_NOTE = (
    "Where the mean learning curve over seeds first is at the last value of A's, between two "
    "evaluations on a straight line; seconds are of training alone."
)
PROBE_NOTE = (
    "k nearest neighbours and a linear classifier on the features of the backbone as it came, and "
    "after fine-tuning; on a sample of the images."
)
A_AND_B = plots.COLOURS[:2]
"""Their colours."""
NAMES = {
    "same": "both at the same learning rate",
    "tuned": "both at the tuned preset",
    "best": "best against best",
}


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
        lines.append(f"{name[:1].upper()}{name[1:]}: {x.verdict}{points}{x.doubt}.")
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
        f"{100 * CONFIDENCE:.0f} % intervals. "
        "Over seeds: Student's t on the pairs of runs of one seed. "
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
        f"at its own {100 * CONFIDENCE:.0f} %: no correction for their number is made."
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
        mean, said = ABSENT if x.flaw else _points(x.mean), x.verdict + x.doubt
        rows.append([NAMES[name], *one.rates, str(len(one.seeds)), mean, *intervals, said])
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
        shares = [
            [run.probe.get(when, {}).get(key) for run in runs.values()] for key, when in places
        ]
        spreads = [Spread(tuple(x for x in known if x is not None)) for known in shares]
        backbone = f"{'AB'[side]} {analysis.backbones[side]}"
        rows.append([backbone, rate, *(x.percent() for x in spreads)])
    head = ["backbone", "lr", *(f"{METRICS[key].label} {when}" for key, when in places)]
    return Table("Frozen features, % right", head, rows, PROBE_NOTE)


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


def curves(analysis: Analysis, rate: str) -> Figure:
    """Each run thin, the mean over seeds thick."""
    figure = plots.new_figure()
    plot = plots.axes(figure, "step")
    plot.set_ylabel(f"{analysis.label} on held-out images, %", fontsize=9)
    for side, colour in enumerate(A_AND_B):
        runs = [run.curve for run in analysis.results[side, rate].values() if run.curve]
        for curve in runs if len(runs) > 1 else []:
            plots.line(plot, _percent(curve), colour, marker="", lw=0.8, alpha=0.5)
        if runs:
            mean = _percent(mean_curve(runs))
            plots.line(plot, mean, colour, lw=2.2, ms=3.5, label="AB"[side])
    seeds = max(len(analysis.results[side, rate]) for side in (0, 1))
    title = f"mean over {seeds} seeds; thin: each" if seeds > 1 else None
    plot.legend(frameon=False, fontsize=9, title=title, title_fontsize=8)
    return figure


def _percent(curve: Sequence[Point]) -> list[tuple[float, float]]:
    return [(point.step, 100 * point.score) for point in curve]


def forest(analysis: Analysis) -> Figure:
    """The differences with their intervals, one comparison a line."""
    rows = judged(analysis)
    figure = plots.figure_of(figsize=(8.4, 1.3 + 0.75 * len(rows)), layout="constrained")
    plot = plots.axes(figure, f"B less A, points of {analysis.label}: right of 0, B is better")
    plot.axvline(0, color=plots.GREY, lw=1)
    for row, (_, one) in enumerate(rows):
        _draw_difference(plot, row, one.difference)
    labels = [f"{name}\n{one.difference.verdict}" for name, one in rows]
    plot.set_yticks(range(len(rows)), labels, fontsize=9)
    plot.set_ylim(len(rows) - 0.4, -0.6)
    plot.set_xlim(*_limits([one.difference for _, one in rows]))
    plot.grid(False, axis="y")
    handles = [
        Line2D([], [], color=A_AND_B[0], lw=2.2, marker="o", label="mean, 95 % interval over both"),
        Line2D([], [], color=plots.GREY, lw=1.2, label="over seeds"),
        Line2D([], [], color=plots.GREY, lw=1.2, ls=":", label="over images"),
        Line2D([], [], color=plots.GREY, ls="", marker="|", ms=8, label="each seed"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


def judged(analysis: Analysis) -> list[tuple[str, Comparison]]:
    """Comparisons whose scores say something."""
    return [
        (NAMES[name], one)
        for name, one in analysis.comparisons.items()
        if one is not None and not one.difference.flaw
    ]


def _limits(differences: Sequence[Difference]) -> tuple[float, float]:
    """Of the x axis, in points. Two seeds may have an interval that is ten times as wide as all
    that was seen: it runs out of the picture."""
    seen = [x for one in differences for x in one.by_seed]
    seen += _ends(one.over_images for one in differences)
    most = 4 * max(map(abs, seen)) or 0.01
    ends = [0.0, *seen, *_ends(one.deciding for one in differences)]
    low, high = max(-most, min(ends)), min(most, max(ends))
    margin = 0.05 * (high - low)
    return 100 * (low - margin), 100 * (high + margin)


def _ends(intervals: Iterable[Interval | None]) -> list[float]:
    return [end for x in intervals if x is not None for end in (x.low, x.high)]


def _draw_difference(plot: Axes, row: int, one: Difference) -> None:
    colour = A_AND_B[0]
    intervals = [
        (one.over_seeds, 0.2, {"color": plots.GREY, "lw": 1.2}),
        (one.over_images, 0.34, {"color": plots.GREY, "lw": 1.2, "ls": ":"}),
        (one.over_both, 0, {"color": colour, "lw": 2.2, "solid_capstyle": "butt"}),
    ]
    for interval, below, style in intervals:
        if interval is not None:
            ends = [100 * interval.low, 100 * interval.high]
            plot.plot(ends, [row + below] * 2, **style)
    plot.plot([100 * one.mean], [row], "o", color=colour, ms=7)
    dots = [100 * x for x in one.by_seed]
    plot.plot(dots, [row - 0.22] * len(dots), "|", color=plots.GREY, ms=8)
