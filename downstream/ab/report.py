"""ab.md and report.html of an A/B: scores, differences with intervals, learning curves, times."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from downstream.ab import statistics as ab_statistics
from downstream.ab.grid import RATES
from downstream.ab.records import Result
from downstream.ab.statistics import LEVEL, RESAMPLES, Interval, Point
from ssld.ablate.summary import Spread
from ssld.common.metrics import METRICS
from ssld.common.text_table import ABSENT
from ssld.report import page

if TYPE_CHECKING:
    from downstream.ab.command import Analysis, Comparison

COLOURS = page.COLOURS[:2]
NAMES = {
    "same": "both at the same learning rate",
    "tuned": "both at the tuned preset",
    "best": "best against best",
}
Table = tuple[list[str], list[list[str]]]
"""Heading and rows."""
STYLE = """
.scroll { overflow-x: auto; } .plots { display: grid; gap: 32px; margin-top: 16px;
  grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); }
.forest { max-width: 860px; }
"""


def markdown(found: Analysis) -> str:
    """ab.md"""
    a, b = found.backbones
    lines = [
        f"# {found.task}: A `{a}` against B `{b}`",
        "",
        f"From `{found.file}`.",
        "",
        *(f"- {line}" for line in headline(found)),
    ]
    for title, (head, rows), note in tables(found):
        shown = [head, ["---"] * len(head), *rows]
        lines += ["", f"## {title}", "", *map(_line, shown), *(["", note] if note else [])]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def headline(found: Analysis) -> list[str]:
    """What each comparison shows, a sentence each."""
    known = {name: one for name, one in found.comparisons.items() if one is not None}
    if not known:
        return ["No seed has runs of both yet."]
    said = [
        f"{NAMES[name]}: {one.difference.verdict}"
        + (
            "."
            if one.difference.flaw
            else f" ({_points(one.difference.mean)} points of {found.label})."
        )
        for name, one in known.items()
    ]
    judged = [one for one in known.values() if not one.difference.flaw]
    if judged and max(len(one.seeds) for one in judged) == 1:
        said.append(
            "One seed has no interval: what another one would give is unknown, so nothing is shown."
        )
    return [line[:1].upper() + line[1:] for line in said]


def tables(found: Analysis) -> list[tuple[str, Table, str]]:
    """(title, table, note)"""
    spread = "Mean ± standard deviation (of a sample) over seeds."
    shown = [(f"{found.label}, %", _scores(found), spread)]
    if any(found.comparisons.values()):
        shown.append(("B less A, points", _differences(found), _note(found)))
        shown.append((f"Time to A's last {found.label}", _times(found), TIMES))
    if any(run.probe for runs in found.results.values() for run in runs.values()):
        shown.append(("Frozen features, % right", _probes(found), PROBES))
    return shown


TIMES = (
    "Where the mean learning curve over seeds first is at the last value of A's, between two "
    "evaluations on a straight line; seconds are of training alone."
)
PROBES = (
    "k nearest neighbours and a linear classifier on the features of the backbone as it came, and "
    "after fine-tuning; on a sample of the images."
)


def _note(found: Analysis) -> str:
    images = {one.images for one in found.comparisons.values() if one is not None}
    said = (
        f"{100 * LEVEL:.0f} % intervals. Over seeds: Student's t on the pairs of runs of one seed. "
    )
    if images - {None}:
        said += (
            f"Over images: {RESAMPLES} draws of the {max(x for x in images if x):,} held-out "
            "images, the same for all runs. Over both: the two added as independent, which decides "
            "the verdict. "
        )
    else:
        said += "The runs kept no record by image, so what other images would give is left out. "
    if any(run.chosen for runs in found.results.values() for run in runs.values()):
        said += (
            "Each run counts at its best evaluation (checkpoint.best), which these very images "
            "chose. "
        )
    return said + (
        "The rates of best against best were chosen by these very images. Three comparisons, each "
        f"at its own {100 * LEVEL:.0f} %: no correction for their number is made."
    )


def _scores(found: Analysis) -> Table:
    rows = []
    for side, name in enumerate(found.backbones):
        spreads = [
            Spread(tuple(x for run in runs.values() if math.isfinite(x := run.score)))
            for runs in (found.results[side, rate] for rate in RATES)
        ]
        rows.append(
            [f"{'AB'[side]} {name}", *(f"{x.percent()} ({len(x.points)})" for x in spreads)]
        )
    return ["backbone", *(f"{rate} (seeds)" for rate in RATES)], rows


def _differences(found: Analysis) -> Table:
    head = ["comparison", "A at", "B at", "seeds", "B less A"]
    head += ["over seeds", "over images", "over both", "verdict"]
    rows = []
    for name, one in found.comparisons.items():
        if one is None:
            rows.append([NAMES[name], *[ABSENT] * (len(head) - 1)])
            continue
        x = one.difference
        intervals = map(_interval, (x.over_seeds, x.over_images, x.over_both))
        mean = ABSENT if x.flaw else _points(x.mean)
        rows.append([NAMES[name], *one.rates, str(len(one.seeds)), mean, *intervals, x.verdict])
    return head, rows


def _points(share: float) -> str:
    return f"{100 * share:+.2f}"


def _interval(found: Interval | None) -> str:
    return ABSENT if found is None else f"{_points(found.low)} to {_points(found.high)}"


def _times(found: Analysis) -> Table:
    head = ["comparison", "score, %", "A at step", "B at step", "B's share of A's steps"]
    head += ["A, seconds", "B, seconds"]
    rows = []
    for name, one in found.comparisons.items():
        if one is None or one.reached is None:
            continue
        a, b = one.reached.a, one.reached.b
        share = f"{b.step / a.step:.0%}" if a and b and a.step else ABSENT
        row = [NAMES[name], f"{100 * one.reached.score:.2f}", _step(a), _step(b), share]
        rows.append([*row, _seconds(a), _seconds(b)])
    return head, rows


def _seconds(point: Point | None) -> str:
    if point is None:
        return ABSENT
    return f"{point.seconds:,.0f}" if point.seconds >= 100 else f"{point.seconds:.1f}"


def _step(point: Point | None) -> str:
    return "not reached" if point is None else f"{point.step:,.0f}"


def _probes(found: Analysis) -> Table:
    places = [(key, when) for when in ("before", "after") for key in ("knn", "linear")]
    rows = []
    for (side, rate), runs in found.results.items():
        spreads = [_probe_spread(list(runs.values()), *place) for place in places]
        rows.append(
            [f"{'AB'[side]} {found.backbones[side]}", rate, *(x.percent() for x in spreads)]
        )
    return ["backbone", "lr", *(f"{METRICS[key].label} {when}" for key, when in places)], rows


def _probe_spread(runs: list[Result], key: str, when: str) -> Spread:
    known = (run.probe.get(when, {}).get(key) for run in runs)
    return Spread(tuple(x for x in known if x is not None))


def write_report(found: Analysis, path: Path) -> None:
    """Write report.html."""
    a, b = found.backbones
    title = f"{found.task}: A against B"
    body = [
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1>",
        f'<p class="lead">A <code>{html.escape(a)}</code>, B <code>{html.escape(b)}</code></p>',
        f'<p class="verdict">{"<br>".join(map(html.escape, headline(found)))}</p>',
        f'<p class="note">From <code>{html.escape(found.file)}</code></p>',
    ]
    if _judged(found):
        body.append(f'<div class="forest">{_drawn_forest(found)}</div>')
    figures = [
        page.drawn(f"{found.label} while training, {NAMES[rate]}", curves(found, rate))
        for rate in RATES
        if any(run.curve for side in (0, 1) for run in found.results[side, rate].values())
    ]
    body.append(f'<h2>Learning curves</h2><div class="plots">{"".join(figures)}</div>')
    for name, (head, rows), note in tables(found):
        body.append(
            f'<h2>{html.escape(name)}</h2><div class="scroll">{page.table(rows, head)}</div>'
        )
        body.append(f'<p class="note">{html.escape(note)}</p>')
    body.append(f"<h2>Reports of the runs</h2>{_links(found, path.parent)}")
    page.write_page(path, title, body)


def _links(found: Analysis, out: Path) -> str:
    lines = []
    for (side, rate), runs in found.results.items():
        folders = {seed: run.folder for seed, run in sorted(runs.items()) if run.folder}
        paths = {seed: (x / "report.html").relative_to(out) for seed, x in folders.items()}
        links = [f'<a href="{quote(x.as_posix())}">{seed}</a>' for seed, x in paths.items()]
        name = html.escape(f"{'AB'[side]} {found.backbones[side]}, {rate}")
        lines.append(f"{name}, seeds {' '.join(links)}" if links else "")
    return f"<p>{'<br>'.join(filter(None, lines))}</p>"


def curves(found: Analysis, rate: str) -> Figure:
    """Each run thin, the mean over seeds thick."""
    figure = page.new_figure()
    plot = page.axes(figure, "step")
    plot.set_ylabel(f"{found.label} on held-out images, %", fontsize=9)
    for side, colour in enumerate(COLOURS):
        runs = [run.curve for run in found.results[side, rate].values() if run.curve]
        for curve in runs if len(runs) > 1 else []:
            plot.plot(*_xy(curve), color=colour, lw=0.8, alpha=0.5)
        mean = ab_statistics.mean_curve(runs)
        marker = "o" if len(mean) < 20 else ""
        if mean:
            plot.plot(*_xy(mean), color=colour, lw=2.2, marker=marker, ms=3.5, label="AB"[side])
    seeds = max(len(found.results[side, rate]) for side in (0, 1))
    title = f"mean over {seeds} seeds; thin: each" if seeds > 1 else None
    plot.legend(frameon=False, fontsize=9, title=title, title_fontsize=8)
    return figure


def _xy(curve: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [point.step for point in curve], [100 * point.score for point in curve]


def forest(found: Analysis) -> Figure:
    """The differences with their intervals, one comparison a line."""
    known = _judged(found)
    figure = Figure(figsize=(8.4, 1.3 + 0.75 * len(known)), layout="constrained")
    plot = page.axes(figure, f"B less A, points of {found.label}: right of 0, B is better")
    plot.axvline(0, color="#57606a", lw=1)
    for row, (_, one) in enumerate(known):
        _draw_difference(plot, row, one)
    plot.set_yticks(range(len(known)), [_row_label(name, one) for name, one in known], fontsize=9)
    plot.set_ylim(len(known) - 0.4, -0.6)
    plot.set_xlim(*_limits([one for _, one in known]))
    plot.grid(False, axis="y")
    handles = [
        Line2D([], [], color=COLOURS[0], lw=2.2, marker="o", label="mean, 95 % interval over both"),
        Line2D([], [], color="#57606a", lw=1.2, label="over seeds"),
        Line2D([], [], color="#57606a", lw=1.2, ls=":", label="over images"),
        Line2D([], [], color="#57606a", ls="", marker="|", ms=8, label="each seed"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


def _judged(found: Analysis) -> list[tuple[str, Comparison]]:
    """Comparisons whose scores say something."""
    return [
        (NAMES[name], one)
        for name, one in found.comparisons.items()
        if one is not None and not one.difference.flaw
    ]


def _limits(known: Sequence[Comparison]) -> tuple[float, float]:
    """Of the x axis, in points. Two seeds may have an interval that is ten times as wide as all
    that was seen: it runs out of the picture."""
    seen = [x for one in known for x in one.difference.by_seed]
    for one in known:
        if one.difference.over_images is not None:
            seen += [one.difference.over_images.low, one.difference.over_images.high]
    most = 4 * max(map(abs, seen)) or 0.01
    ends = [0.0, *seen]
    for one in known:
        if one.difference.deciding is not None:
            ends += [one.difference.deciding.low, one.difference.deciding.high]
    low, high = max(-most, min(ends)), min(most, max(ends))
    margin = 0.05 * (high - low)
    return 100 * (low - margin), 100 * (high + margin)


def _draw_difference(plot: Axes, row: int, one: Comparison) -> None:
    found = one.difference
    lines = [(found.over_seeds, 0.2, "-"), (found.over_images, 0.34, ":")]
    for interval, below, style in lines:
        if interval is not None:
            ends = [100 * interval.low, 100 * interval.high]
            plot.plot(ends, [row + below] * 2, color="#57606a", lw=1.2, ls=style)
    if found.over_both is not None:
        ends = [100 * found.over_both.low, 100 * found.over_both.high]
        plot.plot(ends, [row, row], color=COLOURS[0], lw=2.2, solid_capstyle="butt")
    plot.plot([100 * found.mean], [row], "o", color=COLOURS[0], ms=7)
    dots = [100 * x for x in found.by_seed]
    plot.plot(dots, [row - 0.22] * len(dots), "|", color="#57606a", ms=8)


def _row_label(name: str, one: Comparison) -> str:
    return f"{name}\n{one.difference.verdict}"


def _drawn_forest(found: Analysis) -> str:
    return page.drawn("B less A", forest(found))
