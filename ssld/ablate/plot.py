"""The plot of an axis of an ablation: results over its values, with seeds and intervals."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, NullLocator
from matplotlib.transforms import offset_copy

from ssld.ablate.grid import SEED, Ablation, Axis, Trial
from ssld.ablate.summary import INTERVALS, Spread, Summary
from ssld.common.metrics import METRICS, RESULTS
from ssld.report import plots

MOST_LINES = 8
COLOURS = (*plots.COLOURS[: MOST_LINES - 1], "#12a4a4")  # a page's second green is like its first
LOG_FROM = 10.0
"""Largest number of an axis over its smallest from which on its scale may be logarithmic."""
STAGES = ("-", "--", ":")
MARKERS = ("o", "s", "^")
BROKEN_BELOW = 0.25
"""Range of what is drawn over its highest value, below which an axis from 0 on hides it."""
COLOUR_GAP, COLOURS_WIDTH = 6.0, 30.0
"""Points between lines of two colours, and at most of all together."""
MARK_GAP, PLOT_WIDTH = 18.0, 240.0
"""The same where values have names and nothing joins them; the latter of all values together."""
SEEDS_GAP = 5.0
"""Points from a mean to its seeds."""


@dataclass(frozen=True)
class Line:
    """Of a plot: one stage of one combination of the other axes."""

    label: str
    stage: int
    colour: str
    points: list[tuple[float, Spread]]


def draw(summary: Summary, axis: Axis) -> Figure:
    """Top-1, or what stands for it in `RESULTS`, over the values of an axis."""
    measured = summary.measured()
    metric = next(x for x in RESULTS if x in {metric for _, metric in measured})
    stages = [stage for stage, x in measured if x == metric]
    lines, title = lines_of(summary, axis, stages, metric)
    figure = plots.figure_of(figsize=(7.2, 4.2), layout="constrained")
    plot = plots.axes(figure, axis.name)
    plot.set_ylabel(f"{METRICS[metric].label} on held-out images, %")
    _set_ticks(plot, axis)
    if lines:
        _limit_values(plot, lines)
        _limit_places(plot, axis)
    for line, shift in zip(lines, _shifts(lines, axis), strict=True):
        _draw_line(figure, plot, line, shift, joined=axis.numeric)
    _legend(figure, lines, stages, title, joined=axis.numeric)
    figure.supxlabel(_bars_explained(lines), fontsize=8, color=plots.GREY)
    return figure


def _bars_explained(lines: Sequence[Line]) -> str:
    spreads = [spread for line in lines for _, spread in line.points]
    intervals = [spread.interval() for spread in spreads]
    kinds = {one.kind for one in intervals if one}
    notes = [words for kind, words in INTERVALS.items() if kind in kinds]
    if None in intervals:
        notes.append("no bar: one seed, and no share of images, or of how many is not known")
    if any(len(spread.points) > 1 for spread in spreads):
        notes.append("small dots: each seed")
    return "\n".join(notes)


def _shifts(lines: Sequence[Line], axis: Axis) -> list[float]:
    """How far to the right lines are drawn, so that one does not hide another; in points."""
    if axis.numeric:
        gap, most, marks = COLOUR_GAP, COLOURS_WIDTH, [(line.colour,) for line in lines]
    else:
        gap, most = MARK_GAP, PLOT_WIDTH / len(axis.values)
        marks = [(line.colour, line.stage) for line in lines]
    order = list(dict.fromkeys(marks))
    gap = min(gap, most / max(len(order), 1))
    return [gap * (order.index(mark) - (len(order) - 1) / 2) for mark in marks]


def _limit_places(plot: Axes, axis: Axis) -> None:
    """Set here, as matplotlib does not see lines that are moved aside."""
    low, high = min(places(axis)), max(places(axis))
    if is_log(axis):
        factor = (high / low) ** 0.1
        plot.set_xlim(low / factor, high * factor)
    else:
        aside = 0.1 * (high - low) if axis.numeric else 0.5
        plot.set_xlim(low - aside, high + aside)


def _limit_values(plot: Axes, lines: Sequence[Line]) -> None:
    """From 0 on, or where differences would be lost there from a break on that can be seen."""
    spreads = [spread for line in lines for _, spread in line.points]
    ends = [100 * x for spread in spreads for x in spread.points]
    for interval in filter(None, (spread.interval() for spread in spreads)):
        ends += [100 * interval.low, 100 * interval.high]
    low, high = min(ends), max(ends)
    margin = 0.08 * (high - low) or 1.0
    if low - margin <= 0 or high - low >= BROKEN_BELOW * high:
        plot.set_ylim(0, 1.04 * high or 1.0)
        return
    plot.set_ylim(low - margin, high + margin)
    x, y = [0, -0.012, 0.012, -0.012, 0.012, 0], [0, 0.01, 0.022, 0.034, 0.046, 0.056]
    for colour, width in (("white", 5), ("#1b1f24", 1)):
        plot.plot(x, y, transform=plot.transAxes, color=colour, lw=width, clip_on=False, zorder=5)
    plot.set_title(
        f"the axis is broken: it begins at {low - margin:.1f} %, not at 0",
        loc="left", fontsize=8, color=plots.GREY,
    )  # fmt: skip


def lines_of(
    summary: Summary, axis: Axis, stages: Sequence[str], metric: str
) -> tuple[list[Line], str]:
    """The lines of an axis, and what their labels are."""
    groups: dict[tuple[str, ...], list[Trial]] = {}
    others = [x for x in summary.ablation.compared if x is not axis and len(x.values) > 1]
    for trial in summary.ablation.trials:
        groups.setdefault(tuple(trial.values[x.name].text for x in others), []).append(trial)
    title, several = ",\n".join(plots.label(x.name) for x in others), len(groups) > MOST_LINES
    if several:
        title = f"mean over {title}"
        groups = {(f"{len(groups)} combinations",): summary.ablation.trials}
    lines = []
    for (place, trials), colour in zip(groups.items(), COLOURS, strict=False):
        for i, stage in enumerate(stages):
            spreads = _spreads(summary, axis, trials, stage, metric)
            points = [(x, one) for x, one in zip(places(axis), spreads, strict=True) if one.points]
            lines.append(Line(", ".join(place), i, colour, sorted(points, key=lambda p: p[0])))
    return [line for line in lines if line.points], title


def _spreads(
    summary: Summary, axis: Axis, trials: Sequence[Trial], stage: str, metric: str
) -> list[Spread]:
    """For each value of the axis, over seeds. Where there are several trials of a seed, their mean;
    of those that are known for all values, as others would compare what is not alike."""
    known: dict[tuple[str, ...], dict[str, float]] = {}
    images: dict[str, int | None] = {}
    for trial in trials:
        value, text = summary.value(trial, stage, metric), trial.values[axis.name].text
        if value is not None:
            known.setdefault(trial.others(axis.name), {})[text] = value
            alone = text not in images  # a mean over trials is no share of images
            images[text] = summary.images(trial, stage, metric) if alone else None
    one_each = len(known) == len({_seed(summary.ablation, place, axis) for place in known})
    whole = {k: x for k, x in known.items() if one_each or len(x) == len(axis.values)}
    spreads = []
    for value in axis.values:
        by_seed: dict[str, list[float]] = {}
        for place, x in whole.items():
            if value.text in x:
                by_seed.setdefault(_seed(summary.ablation, place, axis), []).append(x[value.text])
        means = tuple(map(statistics.fmean, by_seed.values()))
        spreads.append(Spread(means, images.get(value.text)))
    return spreads


def _seed(ablation: Ablation, place: tuple[str, ...], axis: Axis) -> str:
    """Of a place on all axes but `axis`."""
    names = [x.name for x in ablation.axes if x.name != axis.name]
    return place[names.index(SEED)] if SEED in names else ""


def is_log(axis: Axis) -> bool:
    """Whether its numbers are told apart better on a logarithmic scale."""
    if not axis.numeric:
        return False
    values = sorted(x.value for x in axis.values)
    if values[0] <= 0 or values[-1] / values[0] < LOG_FROM:
        return False
    return _unevenness([math.log(x) for x in values]) <= _unevenness(values)


def _unevenness(values: list[float]) -> float:
    """The largest of the gaps between sorted values over the smallest."""
    gaps = [b - a for a, b in itertools.pairwise(values)]
    return max(gaps) / min(gaps)


def places(axis: Axis) -> list[float]:
    """Where its values are drawn; in the order of the numbers, else of the file."""
    values = [x.value for x in axis.values]
    if not axis.numeric:
        return [float(i) for i in range(len(values))]
    # On a linear scale 0, 1e-5 and 1e-3 cannot be told apart.
    if is_log(axis) or _unevenness(sorted(values)) <= LOG_FROM:
        return values
    return [float(sorted(values).index(x)) for x in values]


def _set_ticks(plot: Axes, axis: Axis) -> None:
    if is_log(axis):
        plot.set_xscale("log")
    plot.xaxis.set_minor_locator(NullLocator())
    plot.xaxis.set_minor_formatter(NullFormatter())
    texts = [x.text for x in axis.values]
    turned = {"rotation": 20, "ha": "right"} if sum(map(len, texts)) > 60 else {}
    plot.set_xticks(places(axis), [plots.label(x) for x in texts], **turned)


def _draw_line(figure: Figure, plot: Axes, line: Line, shift: float, *, joined: bool) -> None:
    """Moved by `shift` points to the right, and the seeds a bit more."""
    at, beside = (
        {
            "color": line.colour,
            "transform": offset_copy(plot.transData, figure, x=x, units="points"),
            "zorder": 3,
            "clip_on": False,
        }
        for x in (shift, shift + SEEDS_GAP)
    )
    below, above = [], []
    for _, spread in line.points:
        interval = spread.interval()
        below.append(100 * (spread.mean - interval.low) if interval else 0.0)
        above.append(100 * (interval.high - spread.mean) if interval else 0.0)
    plot.errorbar(
        [place for place, _ in line.points],
        [100 * spread.mean for _, spread in line.points],
        yerr=[below, above] if any(spread.interval() for _, spread in line.points) else None,
        ls=STAGES[line.stage] if joined else "",
        marker=MARKERS[line.stage],
        ms=5.5,
        lw=1.8,
        capsize=3,
        elinewidth=1.2,
        **at,
    )
    for place, spread in line.points:
        if len(spread.points) > 1:
            dots = [100 * point for point in spread.points]
            plot.plot([place] * len(dots), dots, ".", ms=5, alpha=0.6, mew=0, **beside)


def _legend(
    figure: Figure, lines: Sequence[Line], stages: Sequence[str], title: str, *, joined: bool
) -> None:
    colours = {line.label: line.colour for line in lines}
    handles = [Line2D([], [], color=c, lw=3, label=plots.label(x)) for x, c in colours.items() if x]
    for stage, style, marker in zip(stages, STAGES, MARKERS, strict=False):
        if len(stages) > 1:
            dashes = style if joined else ""
            handles.append(Line2D([], [], color="#3a424b", ls=dashes, marker=marker, label=stage))
    if handles:
        figure.legend(
            handles=handles, title=title or None, loc="outside right center", frameon=False,
            fontsize=9, title_fontsize=9, alignment="left", handlelength=3,
        )  # fmt: skip
