"""What every page is made of: style, tables, plots and pictures, all inside one HTML file."""

from __future__ import annotations

import base64
import html
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ssld.common.files import write_atomically

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; margin: 0 auto;
  max-width: 1080px; padding: 24px 16px 64px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 19px; margin: 44px 0 8px; }
p { max-width: 46em; } .note { color: #57606a; font-size: 14px; margin: 4px 0 12px; }
.lead { font-size: 19px; margin: 8px 0 16px; color: #3a424b; }
.verdict { border-left: 6px solid #57606a; background: #f6f8fa; padding: 10px 16px; font-size: 18px;
  max-width: none; }
.improving { border-color: #1a7f37; } .flat { border-color: #bf8700; }
.not { border-color: #cf222e; background: #fff1f0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
td, th { padding: 4px 16px 4px 0; border-bottom: 1px solid #e6e8eb; text-align: left;
  vertical-align: top; overflow-wrap: anywhere; }
.number { text-align: right; white-space: nowrap; }
.bars { width: 100%; max-width: 900px; }
.bars th { font-weight: normal; min-width: 8em; overflow-wrap: break-word; }
.bars th + th { text-align: right; min-width: 0; }
.bars .bar { width: 55%; min-width: 60px; white-space: nowrap; font-size: 0; padding-right: 0; }
.bars .bar span { display: inline-block; height: 14px; min-width: 1px; margin-top: 4px; }
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 16px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(235px, 1fr));
  gap: 16px; }
.card { display: grid; grid-template-columns: 88px 1fr; gap: 10px; font-size: 13px;
  line-height: 1.35; }
.card img { width: 88px; height: 88px; object-fit: cover; border-radius: 4px; }
.card b { display: block; color: #57606a; font-weight: 600; margin-top: 2px; }
figure { margin: 0; } figcaption { font-size: 14px; color: #57606a; margin-bottom: 4px; }
img { width: 100%; height: auto; } .pixels { image-rendering: pixelated; }
pre { background: #f6f8fa; padding: 12px; overflow-x: auto; font-size: 13px; }
"""

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


matplotlib.rcParams["text.parse_math"] = False  # a class "$5_to_$10" is no formula


def label(text: str, most: int = 32) -> str:
    """A foreign name as a plot can show it: one line, not too long, only what fonts can be asked
    for."""
    said = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
    said = (said if len(said) <= most else f"{said[: most - 1]}…") or "–"
    return f" {said}" if said.startswith("_") else said  # matplotlib leaves those out of legends


def write_page(path: Path, title: str, body: Sequence[str]) -> None:
    """Write a page in one step."""
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
        f"<body>{''.join(body)}</body></html>\n"
    )
    write_atomically(path, page)


def grid(images: np.ndarray, columns: int = 8) -> np.ndarray:
    """uint8 [n, h, w, 3] -> one white-lined picture, `columns` images a row."""
    n, h, w, _ = images.shape
    columns = min(columns, n)
    rows = -(-n // columns)
    gap = max(1, h // 32)
    sheet = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        sheet[top : top + h, left : left + w] = image
    return sheet


def axes(figure: Figure, xlabel: str) -> Axes:
    """Axes as all plots have them."""
    found = figure.subplots()
    found.set_xlabel(label(xlabel, 80))
    found.grid(color="#e6e8eb")
    found.set_axisbelow(True)
    found.spines[["top", "right"]].set_visible(False)
    return found


def new_figure() -> Figure:
    return Figure(figsize=(4.4, 2.8), layout="constrained")


def curves(
    title: str,
    series: dict[str, list[tuple[float, float]]],
    *,
    low: float | None = None,
    high: float | None = None,
    xlabel: str = "step",
) -> str:
    """Lines over steps, {label: [(x, y)]}; empty ones are left out."""
    figure = Figure(figsize=(4.4, 2.8))
    # Laying out takes as long as drawing: these plots have the same margins all.
    figure.subplots_adjust(left=0.15, right=0.965, bottom=0.175, top=0.93)
    plot = axes(figure, xlabel)
    shown = {name: points for name, points in series.items() if points}
    for (name, points), colour in zip(shown.items(), COLOURS * 4, strict=False):
        marker = "o" if len(points) < 30 else ""
        style: dict[str, Any] = {"label": label(name), "color": colour, "marker": marker}
        plot.plot(*zip(*points, strict=True), **style, ms=3, lw=1.5)
    plot.set_ylim(low, high)
    plot.ticklabel_format(axis="y", scilimits=(-3, 5))  # no longer than the margin
    if len(shown) > 1:
        plot.legend(frameon=False, fontsize=8)
    return drawn(title, figure)


def drawn(caption: str, figure: Figure) -> str:
    """A matplotlib figure as an element of a page."""
    return captioned(caption, _img(png(figure), caption, ""))


def png(figure: Figure, dpi: int = 130, **options: Any) -> io.BytesIO:
    """A figure as a file. A letter that the font has not is shown as a box, without a word."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        warnings.filterwarnings("ignore", "Matplotlib currently does not support", UserWarning)
        warnings.filterwarnings("ignore", "constrained_layout not applied", UserWarning)
        figure.savefig(buffer, dpi=dpi, **options)
    return buffer


def picture(caption: str, pixels: np.ndarray) -> str:
    """uint8 [h, w, 3] as an element of a page; small ones keep their pixels."""
    css = "pixels" if pixels.shape[1] < 400 else ""
    return captioned(caption, _img(_png(pixels), caption, css))


def card(pixels: np.ndarray, lines: Sequence[tuple[str, str]]) -> str:
    """A small picture beside (heading, text) lines."""
    text = "".join(f"<b>{html.escape(a)}</b>{html.escape(b)}" for a, b in lines)
    return f'<div class="card">{_img(_png(pixels), lines[0][1], "")}<div>{text}</div></div>'


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Rows whose first cell is a heading."""
    top = f"<tr>{''.join(f'<th>{html.escape(x)}</th>' for x in head)}</tr>" if head else ""
    body = (
        f"<tr><th>{html.escape(row[0])}</th>"
        f"{''.join(f'<td>{html.escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    return f"<table>{top}{''.join(body)}</table>"


def bars(
    rows: Sequence[tuple[Sequence[str], Sequence[tuple[float, str]]]], head: Sequence[str]
) -> str:
    """Rows of cells, the first a heading, and a horizontal bar of (length, colour) parts, all on
    one scale."""
    longest = max((sum(length for length, _ in parts) for _, parts in rows), default=0) or 1
    lines = [f"<tr>{''.join(f'<th>{html.escape(x)}</th>' for x in (*head, ''))}</tr>"]
    for cells, parts in rows:
        spans = "".join(
            f'<span style="width:{100 * length / longest:.2f}%;background:{colour}"></span>'
            for length, colour in parts
            if length
        )
        first, *others = map(html.escape, cells)
        told = "".join(f'<td class="number">{cell}</td>' for cell in others)
        lines.append(f'<tr><th>{first}</th>{told}<td class="bar">{spans}</td></tr>')
    return f'<table class="bars">{"".join(lines)}</table>'


def captioned(caption: str, shown: str) -> str:
    """An element of a page below its caption."""
    return f"<figure><figcaption>{html.escape(caption)}</figcaption>{shown}</figure>"


def _png(pixels: np.ndarray) -> io.BytesIO:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer


def _img(png: io.BytesIO, alt: str, css: str) -> str:
    data = base64.b64encode(png.getvalue()).decode()
    return f'<img class="{css}" alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'
