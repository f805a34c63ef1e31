"""Plots as all pages have them: colours, axes, labels, lines over steps."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

COLOURS = (
    "#0b6bcb",
    "#d1580a",
    "#1a7f37",
    "#8250df",
    "#bf3989",
    "#6e7781",
    "#9a6700",
    "#116329",
)
GREY = "#57606a"
"""Of what is no measurement: notes, marks, other intervals."""
MARKED_BELOW = 30
"""Points of a line that are few enough to be shown one by one."""
Points = Sequence[tuple[float, float]]


def figure_of(**size: Any) -> Figure:
    """A new figure of matplotlib, which a run imports for its pages alone."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["text.parse_math"] = False  # a class "$5_to_$10" is no formula
    return Figure(**size)


def label(text: str, most: int = 32) -> str:
    """A stranger's name as a plot can show it: one line, not too long, only what fonts can be asked
    for."""
    line = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
    line = (line if len(line) <= most else f"{line[: most - 1]}…") or "–"
    return f" {line}" if line.startswith("_") else line  # matplotlib leaves those out of legends


def new_figure() -> Figure:
    """An empty figure of the size that a row of a page has room for."""
    return figure_of(figsize=(4.4, 2.8), layout="constrained")


def axes(figure: Figure | SubFigure, xlabel: str) -> Axes:
    """Axes as all plots have them."""
    plot = figure.subplots()
    plot.set_xlabel(label(xlabel, 80))
    plot.grid(color="#e6e8eb")
    plot.set_axisbelow(True)
    plot.spines[["top", "right"]].set_visible(False)
    return plot


def line(plot: Axes, points: Points, colour: str, **style: Any) -> None:
    """Draw a line through (x, y) points; few ones are marked."""
    style = {"marker": "o" if len(points) < MARKED_BELOW else "", "ms": 3, "lw": 1.5, **style}
    plot.plot([x for x, _ in points], [y for _, y in points], color=colour, **style)


def curves(
    series: Mapping[str, Points],
    *,
    low: float | None = None,
    high: float | None = None,
    xlabel: str = "step",
) -> Figure:
    """Lines over steps, {label: [(x, y)]}; empty ones are left out."""
    figure = figure_of(figsize=(4.4, 2.8))
    # Laying out takes as long as drawing: these plots have the same margins all.
    figure.subplots_adjust(left=0.15, right=0.965, bottom=0.175, top=0.93)
    plot = axes(figure, xlabel)
    shown = {name: points for name, points in series.items() if points}
    for (name, points), colour in zip(shown.items(), COLOURS * 4, strict=False):
        line(plot, points, colour, label=label(name))
    plot.set_ylim(low, high)
    steps = {x for points in shown.values() for x, _ in points}
    if len(steps) == 1 and max(steps) > 0:  # its surroundings are no scale
        plot.set_xlim(0, 1.05 * max(steps))
    plot.ticklabel_format(axis="y", scilimits=(-3, 5))  # no longer than the margin
    if len(shown) > 1:
        plot.legend(frameon=False, fontsize=8)
    return figure


def png(figure: Figure, dpi: int = 130, **options: Any) -> bytes:
    """A figure as a file. A letter that the font has not is shown as a box, without a word."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        warnings.filterwarnings("ignore", "Matplotlib currently does not support", UserWarning)
        warnings.filterwarnings("ignore", "constrained_layout not applied", UserWarning)
        figure.savefig(buffer, dpi=dpi, **options)
    return buffer.getvalue()
