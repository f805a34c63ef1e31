"""Draw `docs/zoo.png`: published accuracy of the `_ssld` weights and of their baselines.

    python benchmarks/zoo_picture.py [--out docs/zoo.png]

Every number is the publisher's (`zoo/catalog.yaml`), none is measured. One point per architecture:
further files of the same architecture are left out, except the one at another resolution. A label
goes to the free place that is nearest to its point.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox
from measure import parser

from zoo.catalog import catalog

# Start of the name, colour, what the legend says.
FAMILIES = (
    ("mobilenetv", "#0969da", "MobileNet, GhostNet"),
    ("ghostnet", "#0969da", ""),
    ("lcnet", "#1a7f37", "PP-LCNet"),
    ("resnet", "#cf222e", "ResNet-D"),
    ("res2net", "#bf6a00", "Res2Net-D"),
    ("hrnet", "#8250df", "HRNet"),
    ("se_hrnet", "#8250df", ""),
    ("hgnetv2", "#1b1f24", "PP-HGNetV2"),
    ("hgnet_", "#0e8a9b", "PP-HGNet"),
)
SHORT = {"_large_100": " large", "_small_100": " small", "_small_035": " small .35"}
SHORT |= {"mobilenetv1_100": "mobilenet v1", "mobilenetv2_100": "mobilenet v2"}
SHORT |= {"mobilenetv3": "mobilenet v3", "_": " "}
SIZE_INCHES = (8, 5.8)
DPI = 200  # twice what it is shown at, 800 px
NEAR = 26  # px from point to label up to which no line is needed
CHOICES = 150  # places that are tried for a label
ORDERS = 1000  # in which labels are placed; the best is kept


@dataclass(frozen=True)
class Point:
    """One dot of the picture."""

    label: str
    colour: str
    macs_m: float
    top1: float
    baseline: float | None


@dataclass(frozen=True)
class Place:
    """Where a label goes: its box and, if it is far from its point, the end of its line."""

    box: Bbox
    line_to: np.ndarray | None
    cost: float


def main() -> None:
    """Read the arguments, draw, save."""
    words = parser(__doc__)
    words.add_argument("--out", type=Path, default=Path("docs/zoo.png"))
    out = words.parse_args().out
    draw(points()).savefig(out, dpi=DPI)
    print(f"{out}: {out.stat().st_size / 1e3:.0f} kB")


def points() -> list[Point]:
    """What has a published accuracy, one point per architecture and resolution."""
    results = []
    for entry in catalog().values():
        if entry.top1 is None or entry.tag not in ("", "fix"):
            continue
        label = entry.arch_name.removesuffix("_ssld")
        for part, short in SHORT.items():
            label = label.replace(part, short)
        label += f", {entry.input_size} px" if entry.tag else ""
        colour = next(colour for start, colour, _ in FAMILIES if entry.name.startswith(start))
        baseline = None if entry.tag else entry.baseline_top1
        results.append(Point(label, colour, entry.macs_m, entry.top1, baseline))
    return results


def draw(result: Sequence[Point]) -> Figure:
    """Accuracy against multiply-adds, a line from each baseline up to its weights."""
    figure = Figure(SIZE_INCHES, dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.set_xlim(10, 45_000)
    # Errors on a log scale: otherwise the accurate half of the zoo would share a strip.
    axes.set_yscale("function", functions=(lambda y: -np.log(100 - y), lambda z: 100 - np.exp(-z)))
    axes.set_ylim(50, 88)
    axes.set_yticks([50, 55, 60, 65, 70, 75, 80, 85])
    axes.set_xlabel("multiply-adds for one image", fontsize=9)
    axes.set_ylabel("top-1 on ImageNet-1k val, %, as published", fontsize=9)
    axes.xaxis.set_major_formatter(FuncFormatter(_amount))
    axes.tick_params(labelsize=8)
    axes.grid(color="#e6e8eb", lw=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    for point in result:
        x, colour = point.macs_m, point.colour
        axes.plot(x, point.top1, "o", ms=5, color=colour, zorder=3)
        if point.baseline is not None:
            axes.plot([x, x], [point.baseline, point.top1], color=colour, lw=1, zorder=2)
            axes.plot(x, point.baseline, "o", ms=4, mfc="white", mec=colour, mew=1, zorder=3)
    _legend(axes)
    canvas.draw()  # settles the layout, so that pixels are final
    _label(axes, canvas, result)
    return figure


def _amount(macs_m: float, _: int) -> str:
    return f"{macs_m / 1000:g} G" if macs_m >= 1000 else f"{macs_m:g} M"


def _legend(axes: Axes) -> None:
    dots = [("o", colour, colour, text) for _, colour, text in FAMILIES if text]
    dots.append(("o", "#57606a", "#57606a", "distilled (_ssld)"))
    dots.append(("o", "#57606a", "white", "the same trained with labels"))
    handles = [
        Line2D([], [], ls="", marker=marker, ms=5, mec=edge, mfc=fill, label=text)
        for marker, edge, fill, text in dots
    ]
    axes.legend(handles=handles, loc="lower right", fontsize=8, frameon=False, labelspacing=0.35)


def _label(axes: Axes, canvas: FigureCanvasAgg, result: Sequence[Point]) -> None:
    """Write the labels where they hide nothing, in the order of placing that turns out best."""
    texts, sizes = [], []
    for point in result:
        text = axes.text(0, 0, point.label, fontsize=7.5, color=point.colour, zorder=4)
        text.set(transform=None, va="center", ha="center")
        extent = text.get_window_extent(canvas.get_renderer())
        texts.append(text)
        sizes.append(np.array([extent.width, extent.height]))
    # Both ends of each point's stem in px: the weights, and the baseline or the weights again.
    ends = [
        axes.transData.transform([(p.macs_m, p.top1), (p.macs_m, p.baseline or p.top1)])
        for p in result
    ]
    legend = axes.get_legend()
    taken = [legend.get_window_extent()] if legend else []
    for high, low in ends:
        taken += [_around(high, 14), _around(low, 12), Bbox([low - 3, high + 3])]
    frame = axes.get_window_extent()
    for text, (high, _), place in zip(
        texts, ends, _arrange(ends, sizes, taken, frame), strict=True
    ):
        box = place.box
        text.set_position(((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2))
        if place.line_to is not None:
            xs, ys = zip(high, place.line_to, strict=True)
            axes.add_line(Line2D(xs, ys, transform=None, lw=0.5, color="#8c959f"))


def _arrange(
    ends: list[np.ndarray], sizes: list[np.ndarray], taken: list[Bbox], frame: Bbox
) -> list[Place]:
    choices = [
        sorted(
            (p for p in _places(i, ends, size, taken) if _free(p.box, frame, taken)),
            key=lambda place: place.cost,
        )[:CHOICES]
        for i, size in enumerate(sizes)
    ]

    @cache
    def clash(i: int, a: int, j: int, b: int) -> bool:
        return _clash(choices[i][a], ends[i], choices[j][b], ends[j])

    lots, best, lowest = random.Random(0), [], math.inf
    for _ in range(ORDERS):
        placed: dict[int, int] = {}
        for i in lots.sample(range(len(ends)), len(ends)):
            free = (
                a
                for a in range(len(choices[i]))
                if not any(clash(i, a, j, b) for j, b in placed.items())
            )
            placed[i] = next(free, len(choices[i]) - 1)
        places = [choices[i][placed[i]] for i in range(len(ends))]
        cost = sum(place.cost for place in places)
        if cost < lowest:
            best, lowest = places, cost
    return best


def _places(i: int, ends: list[np.ndarray], size: np.ndarray, taken: list[Bbox]) -> list[Place]:
    """Places around a point, and below its baseline. Far ones cost more, and so do those to which
    another point is nearer, and those whose line would cross something."""
    results = []
    high, low = ends[i]
    others = np.concatenate([end for j, end in enumerate(ends) if j != i])
    rest = [box for box in taken if not box.contains(*high)]
    for gap in (*range(12, 60, 6), *range(60, 400, 20)):
        for angle in range(0, 360, 15):
            way = np.array([math.cos(math.radians(angle)), math.sin(math.radians(angle))])
            for start in (high, low) if way[1] < -0.5 and gap < NEAR else (high,):
                centre = start + way * gap + np.clip(way * 2.5, -1, 1) * size / 2
                box = Bbox([centre - size / 2 - 2, centre + size / 2 + 2])
                end = np.clip(start, box.min, box.max)
                away = float(np.hypot(*(end - start)))
                cost = away + (20 + 20 * abs(way[0]) if start is low else 4 * abs(way[1]))
                far = away > NEAR
                gaps = np.hypot(*(np.clip(others, box.min, box.max) - others).T)
                cost += 60 * far + 60 * bool(gaps.min() < away + 6)
                cost += 200 * (far and _crosses(high, end, rest))
                results.append(Place(box, end if far else None, cost))
    return results


def _clash(a: Place, ends_a: np.ndarray, b: Place, ends_b: np.ndarray) -> bool:
    """Whether two labels, or the line of one and the label of the other, meet."""
    if a.box.overlaps(b.box):
        return True
    return (a.line_to is not None and _crosses(ends_a[0], a.line_to, [b.box])) or (
        b.line_to is not None and _crosses(ends_b[0], b.line_to, [a.box])
    )


def _around(spot: np.ndarray, width: float) -> Bbox:
    return Bbox([spot - width / 2, spot + width / 2])


def _free(box: Bbox, frame: Bbox, taken: list[Bbox]) -> bool:
    inside = frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1
    return inside and box.count_overlaps(taken) == 0


def _crosses(start: np.ndarray, end: np.ndarray, boxes: Sequence[Bbox]) -> bool:
    steps = (start + (end - start) * np.linspace(0, 1, 30)[:, None])[:, None]
    corners = np.array([box.get_points() for box in boxes])  # [boxes, low and high, x and y]
    return bool(((steps >= corners[:, 0]) & (steps <= corners[:, 1])).all(axis=2).any())


if __name__ == "__main__":
    main()
