"""The plots of an A/B: learning curves, and the differences with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from downstream.ab.analysis import Analysis, Comparison
from downstream.ab.statistics import Difference, Interval, Point, mean_curve
from ssld.report import plots

A_AND_B = plots.COLOURS[:2]
"""Colours."""
NAMES = {
    "same": "both at the same learning rate",
    "tuned": "both at the tuned preset",
    "best": "best against best",
}


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
    figure = Figure(figsize=(8.4, 1.3 + 0.75 * len(rows)), layout="constrained")
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
