"""report.html of an ablation, and a picture per axis to show in a talk."""

from __future__ import annotations

import base64
import html
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, NullLocator
from matplotlib.transforms import offset_copy

from ssld.ablate.grid import SEED, Ablation, Axis, Cell, file_name
from ssld.ablate.summary import INTERVALS, Spread, Summary, explained, table
from ssld.common.files import write_atomically
from ssld.common.metrics import METRICS, RESULTS
from ssld.report import page

MOST_LINES = 8
COLOURS = (*page.COLOURS[: MOST_LINES - 1], "#12a4a4")  # a page's second green is like its first
LOG_FROM = 10.0
"""Largest number of an axis over its smallest from which on its scale may be logarithmic."""
STAGES = ("-", "--", ":")
MARKERS = ("o", "s", "^")
SEEN_FROM = 0.25
"""Range of what is drawn over its highest value, below which an axis from 0 on hides it."""
APART, MOST_APART = 6.0, 30.0
"""Between lines of several colours, and of all together; in points."""
NAMED_APART, WIDTH = 18.0, 240.0
"""Where values have names and nothing joins them, and of all values together."""
BESIDE = 5.0
"""From a mean to its seeds, in points."""
STYLE = """
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 32px;
  margin-top: 32px; }
.plots img { max-width: 720px; }
.scroll { overflow-x: auto; } .scroll :is(td, th) { white-space: nowrap; }
.scroll th.number { text-align: right; }
"""


@dataclass(frozen=True)
class Line:
    """Of a plot: one stage of one combination of the other axes."""

    label: str
    stage: int
    colour: str
    points: list[tuple[float, Spread]]


def write_report(found: Summary) -> None:
    """Write report.html and plots/*.png."""
    ablation, figures = found.ablation, []
    for axis in ablation.compared:
        if len(axis.values) > 1 and found.measured():
            picture = page.png(draw(found, axis), dpi=200)
            path = ablation.out / "plots" / f"{file_name(axis.name)}.png"
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, picture.getvalue())
            data = base64.b64encode(picture.getvalue()).decode()
            name = html.escape(axis.name)
            figures.append(
                f'<figure><img alt="{name}" src="data:image/png;base64,{data}"></figure>'
            )
    body = [
        f"<style>{STYLE}</style><h1>Ablation: {html.escape(ablation.title)}</h1>",
        f'<p class="note">From <code>{html.escape(ablation.file)}</code>. '
        f"{html.escape(explained(found))}</p>{_table(found)}{_failed(found)}",
        f'<div class="plots">{"".join(figures)}</div>',
    ]
    page.write_page(ablation.out / "report.html", f"Ablation: {ablation.title}", body)


def draw(found: Summary, axis: Axis) -> Figure:
    """Top-1, or what stands for it in `RESULTS`, over the values of an axis."""
    metric = next(x for x in RESULTS if x in {metric for _, metric in found.measured()})
    stages = [stage for stage, x in found.measured() if x == metric]
    lines, title = _lines(found, axis, stages, metric)
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    plot = page.axes(figure, axis.name)
    plot.set_ylabel(f"{METRICS[metric].label} on held-out images, %")
    joined = _scale(plot, axis)
    if lines:
        _limit(plot, axis, lines)
    for line, shift in zip(lines, _shifts(lines, axis), strict=True):
        _draw_line(figure, plot, line, shift, joined)
    _legend(figure, lines, stages if len(stages) > 1 else [], title, joined)
    figure.supxlabel(_bars_explained(lines), fontsize=8, color="#57606a")
    return figure


def _bars_explained(lines: Sequence[Line]) -> str:
    spreads = [spread for line in lines for _, spread in line.points]
    intervals = [spread.interval() for spread in spreads]
    kinds = {one.kind for one in intervals if one}
    said = [words for kind, words in INTERVALS.items() if kind in kinds]
    if None in intervals:
        said.append("no bar: one seed, and no share of images, or of how many is not known")
    if any(len(spread.points) > 1 for spread in spreads):
        said.append("small dots: each seed")
    return "\n".join(said)


def _shifts(lines: Sequence[Line], axis: Axis) -> list[float]:
    """How far to the right lines are drawn, so that one does not hide another; in points."""
    joined, room = axis.numeric, WIDTH / len(axis.values)
    apart, most = (APART, MOST_APART) if joined else (NAMED_APART, room)
    marks = [line.colour if joined else (line.colour, line.stage) for line in lines]
    order = list(dict.fromkeys(marks))
    apart = min(apart, most / max(len(order), 1))
    return [apart * (order.index(mark) - (len(order) - 1) / 2) for mark in marks]


def _limit(plot: Axes, axis: Axis, lines: Sequence[Line]) -> None:
    """Set here, as matplotlib does not see lines that are moved aside."""
    spreads = [spread for line in lines for _, spread in line.points]
    ends = [100 * x for spread in spreads for x in spread.points]
    for interval in filter(None, (spread.interval() for spread in spreads)):
        ends += [100 * interval.low, 100 * interval.high]
    _limit_shares(plot, min(ends), max(ends))
    low, high = min(_places(axis)), max(_places(axis))
    if _log(axis):
        factor = (high / low) ** 0.1
        plot.set_xlim(low / factor, high * factor)
    else:
        aside = 0.1 * (high - low) if axis.numeric else 0.5
        plot.set_xlim(low - aside, high + aside)


def _limit_shares(plot: Axes, low: float, high: float) -> None:
    """From 0 on, or where differences would be lost there from a break on that can be seen."""
    margin = 0.08 * (high - low) or 1.0
    if low - margin <= 0 or high - low >= SEEN_FROM * high:
        plot.set_ylim(0, 1.04 * high or 1.0)
        return
    plot.set_ylim(low - margin, high + margin)
    x, y = [0, -0.012, 0.012, -0.012, 0.012, 0], [0, 0.01, 0.022, 0.034, 0.046, 0.056]
    for colour, width in (("white", 5), ("#1b1f24", 1)):
        plot.plot(x, y, transform=plot.transAxes, color=colour, lw=width, clip_on=False, zorder=5)
    plot.set_title(
        f"the axis is broken: it begins at {low - margin:.1f} %, not at 0",
        loc="left", fontsize=8, color="#57606a",
    )  # fmt: skip


def _lines(found: Summary, axis: Axis, stages: list[str], metric: str) -> tuple[list[Line], str]:
    """The lines of an axis, and what their labels are."""
    groups: dict[tuple[str, ...], list[Cell]] = {}
    others = [x for x in found.ablation.compared if x is not axis and len(x.values) > 1]
    for cell in found.ablation.cells:
        groups.setdefault(tuple(cell.values[x.name].text for x in others), []).append(cell)
    title, several = ",\n".join(page.label(x.name) for x in others), len(groups) > MOST_LINES
    if several:
        title = f"mean over {title}"
        groups = {(f"{len(groups)} combinations",): found.ablation.cells}
    lines = []
    for (place, cells), colour in zip(groups.items(), COLOURS, strict=False):
        for i, stage in enumerate(stages):
            spreads = _spreads(found, axis, cells, stage, metric)
            points = [(x, one) for x, one in zip(_places(axis), spreads, strict=True) if one.points]
            lines.append(Line(", ".join(place), i, colour, sorted(points, key=lambda p: p[0])))
    return [line for line in lines if line.points], title


def _spreads(
    found: Summary, axis: Axis, cells: Sequence[Cell], stage: str, metric: str
) -> list[Spread]:
    """For each value of the axis, over seeds. Where there are several cells of a seed, their mean;
    of those that are known for all values, as others would compare what is not alike."""
    known: dict[tuple[str, ...], dict[str, float]] = {}
    images: dict[str, int | None] = {}
    for cell in cells:
        value, text = found.value(cell, stage, metric), cell.values[axis.name].text
        if value is not None:
            known.setdefault(cell.others(axis.name), {})[text] = value
            alone = text not in images  # a mean over cells is no share of images
            images[text] = found.images(cell, stage, metric) if alone else None
    one_each = len(known) == len({_seed(found.ablation, place, axis) for place in known})
    whole = {k: x for k, x in known.items() if one_each or len(x) == len(axis.values)}
    spreads = []
    for value in axis.values:
        by_seed: dict[str, list[float]] = {}
        for place, x in whole.items():
            if value.text in x:
                by_seed.setdefault(_seed(found.ablation, place, axis), []).append(x[value.text])
        means = tuple(map(statistics.fmean, by_seed.values()))
        spreads.append(Spread(means, images.get(value.text)))
    return spreads


def _seed(ablation: Ablation, place: tuple[str, ...], axis: Axis) -> str:
    """Of a place on all axes but `axis`."""
    names = [x.name for x in ablation.axes if x.name != axis.name]
    return place[names.index(SEED)] if SEED in names else ""


def _log(axis: Axis) -> bool:
    if not axis.numeric:
        return False
    values = sorted(x.value for x in axis.values)
    if values[0] <= 0 or values[-1] / values[0] < LOG_FROM:
        return False
    return _unevenness([math.log(x) for x in values]) <= _unevenness(values)


def _linear(axis: Axis) -> bool:
    """Whether its numbers can be told apart on such a scale: 0, 1e-5 and 1e-3 cannot."""
    if not axis.numeric or _log(axis):
        return False
    return _unevenness(sorted(x.value for x in axis.values)) <= LOG_FROM


def _unevenness(values: list[float]) -> float:
    """The largest of the gaps between sorted values over the smallest."""
    gaps = [b - a for a, b in zip(values, values[1:], strict=False)]
    return max(gaps) / min(gaps)


def _places(axis: Axis) -> list[float]:
    """Where its values are drawn; in the order of the numbers, else of the file."""
    if _log(axis) or _linear(axis):
        return [x.value for x in axis.values]
    if axis.numeric:
        ordered = sorted(x.value for x in axis.values)
        return [float(ordered.index(x.value)) for x in axis.values]
    return [float(i) for i in range(len(axis.values))]


def _scale(plot: Axes, axis: Axis) -> bool:
    """Ticks where values are; returns whether there is anything between them to draw a line in."""
    if _log(axis):
        plot.set_xscale("log")
    plot.xaxis.set_minor_locator(NullLocator())
    plot.xaxis.set_minor_formatter(NullFormatter())
    texts = [x.text for x in axis.values]
    long = sum(map(len, texts)) > 60
    turned = {"rotation": 20, "ha": "right"} if long else {}
    plot.set_xticks(_places(axis), [page.label(x) for x in texts], **turned)
    return axis.numeric


def _draw_line(figure: Figure, plot: Axes, line: Line, shift: float, joined: bool) -> None:
    """Moved by `shift` points to the right, and the seeds a bit more."""
    at, beside = (
        {
            "color": line.colour,
            "transform": offset_copy(plot.transData, figure, x=x, units="points"),
            "zorder": 3,
            "clip_on": False,
        }
        for x in (shift, shift + BESIDE)
    )
    intervals = [spread.interval() for _, spread in line.points]
    bars = [
        [0.0, 0.0]
        if one is None
        else [100 * (spread.mean - one.low), 100 * (one.high - spread.mean)]
        for (_, spread), one in zip(line.points, intervals, strict=True)
    ]
    plot.errorbar(
        [place for place, _ in line.points],
        [100 * spread.mean for _, spread in line.points],
        yerr=[list(x) for x in zip(*bars, strict=True)] if any(intervals) else None,
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
    figure: Figure, lines: Sequence[Line], stages: Sequence[str], title: str, joined: bool
) -> None:
    colours = {line.label: line.colour for line in lines}
    handles = [Line2D([], [], color=c, lw=3, label=page.label(x)) for x, c in colours.items() if x]
    for stage, style, marker in zip(stages, STAGES, MARKERS, strict=False):
        dashes = style if joined else ""
        handles.append(Line2D([], [], color="#3a424b", ls=dashes, marker=marker, label=stage))
    if handles:
        figure.legend(
            handles=handles, title=title or None, loc="outside right center", frameon=False,
            fontsize=9, title_fontsize=9, alignment="left", handlelength=3,
        )  # fmt: skip


def _table(found: Summary) -> str:
    """As table.md, with the cells' own reports."""
    head, rows = table(found)
    texts = len(found.ablation.compared) or 1
    first = "".join(f"<th>{html.escape(x)}</th>" for x in head[:texts])
    first += "".join(f'<th class="number">{html.escape(x)}</th>' for x in head[texts:])
    lines = [f"<tr>{first}<th>reports</th></tr>"]
    for row, cells in zip(rows, found.places.values(), strict=True):
        links = " ".join(_link(found.ablation, cell) for cell in cells)
        names = "".join(f"<th>{html.escape(x)}</th>" for x in row[:texts])
        numbers = "".join(f'<td class="number">{html.escape(x)}</td>' for x in row[texts:])
        lines.append(f"<tr>{names}{numbers}<td>{links}</td></tr>")
    return f'<div class="scroll"><table>{"".join(lines)}</table></div>'


def _link(ablation: Ablation, cell: Cell) -> str:
    folder = ablation.folder(cell)
    own = [folder / "report.html", folder / ablation.stages[0] / "report.html"]
    found = next((x for x in own if x.is_file()), folder / "cell.log")
    target = found.relative_to(folder).as_posix()
    text = cell.values[SEED].text if SEED in cell.values else "report"
    return f'<a href="{quote(f"cells/{cell.name}/{target}")}">{html.escape(text)}</a>'


def _failed(found: Summary) -> str:
    if not found.failed:
        return ""
    rows = [[name, why] for name, why in found.failed.items()]
    return f"<h2>Failed</h2>{page.table(rows)}"
