"""`report.html`: what a run did, as pictures; one file that needs nothing else."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ssld.run.folder import versions, write_atomically

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; margin: 0 auto;
  max-width: 1080px; padding: 24px 16px 64px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 18px; margin: 40px 0 8px; }
.lead { font-size: 19px; margin: 8px 0 24px; color: #3a424b; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
td, th { padding: 4px 16px 4px 0; border-bottom: 1px solid #e6e8eb; text-align: left;
  vertical-align: top; overflow-wrap: anywhere; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 16px; }
figure { margin: 0; } figcaption { font-size: 14px; color: #57606a; margin-bottom: 4px; }
img { width: 100%; height: auto; } .pixels { image-rendering: pixelated; }
pre { background: #f6f8fa; padding: 12px; overflow-x: auto; font-size: 13px; }
"""

COLOURS = ("#0b6bcb", "#d1580a", "#1a7f37", "#8250df")


def write_report(
    out: Path, facts: dict[str, Any], panels: Sequence[tuple[str, np.ndarray]]
) -> None:
    """Write `out/report.html` from `metrics.jsonl` and `config.yaml`.

    Args:
        facts: what `run.json` holds: networks, teacher's top-1, data.
        panels: captions and uint8 pictures [h, w, 3].
    """
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    evaluations = [line for line in lines if line["kind"] == "eval"]
    settings = html.escape((out / "config.yaml").read_text())
    body = [
        f"<h1>{html.escape(out.resolve().name)}</h1>",
        f'<p class="lead">{html.escape(_headline(train, evaluations, facts))}</p>',
        "<h2>Networks and data</h2>",
        _table(_networks(facts)),
        "<h2>Curves</h2>",
        f'<div class="row">{"".join(_curves(train, evaluations))}</div>',
        "<h2>The same views as each network sees them</h2>",
        f'<div class="row">{"".join(_picture(*panel) for panel in panels)}</div>',
        f"<h2>Settings</h2><pre>{settings}</pre>",
        "<h2>Versions</h2>",
        _table(sorted(versions().items())),
    ]
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(out.resolve().name)}</title><style>{STYLE}</style>"
        f"<body>{''.join(body)}</body></html>\n"
    )
    write_atomically(out / "report.html", page)


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


def _headline(train: list[dict], evaluations: list[dict], facts: dict[str, Any]) -> str:
    if not train:
        return "No step has been logged yet."
    last = train[-1]
    said = f"After {last['step']:,} of {facts['steps']:,} steps ({last['epoch']:.1f} epochs)"
    said += f" the loss is {last['loss']:.4f}"
    if evaluations:
        best = evaluations[-1]
        names = {"top1": "top-1", "agreement1": "agreement with the teacher"}
        shown = [f"{names[k]} {best[k]:.1%}" for k in names if best.get(k) is not None]
        said += ", on held-out images " + " and ".join(shown) if shown else ""
    if last.get("unreadable"):
        said += f"; {last['unreadable']} images could not be read"
    return said + "."


def _networks(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for role, fact in facts.items():
        if isinstance(fact, dict) and "parameters_m" in fact:
            rows.append(
                (
                    role,
                    f"{fact['architecture']}, {fact['parameters_m']:.2f} M parameters, "
                    f"{fact['macs_m']:,.0f} M multiply-adds at {fact['input_size']} px",
                )
            )
    top1 = facts.get("teacher_top1")
    if top1:
        rows.append(
            (
                "teacher's top-1",
                f"{top1['hits'] / top1['images']:.2%} [{top1['low']:.2%} to {top1['high']:.2%}] "
                f"on {top1['images']} labeled images",
            )
        )
    rows += [(path, f"{count:,} images") for path, count in facts["images"].items()]
    for key in ("teacher_sha256", "data_sha256", "peak_lr", "processes", "device"):
        if facts.get(key) is not None:
            rows.append((key.replace("_", " "), str(facts[key])))
    return rows


def _curves(train: list[dict], evaluations: list[dict]) -> list[str]:
    skipped = {"kind", "step", "epoch", "seconds", "loss", "lr", "unreadable"}
    speed = ("images_per_second", "data_wait_percent")
    terms = [k for k in (train[0] if train else {}) if k not in skipped and k not in speed]
    rates = [k for k in ("top1", "top5", "agreement1", "agreement5") if _has(evaluations, k)]
    plots = [
        _plot("loss terms", train, terms),
        _plot("learning rate", train, ["lr"]),
        _plot("images per second", train, ["images_per_second"]),
        _plot("waiting for data, %", train, ["data_wait_percent"], low=0),
    ]
    if rates:
        plots.insert(1, _plot("held-out images: share", evaluations, rates, low=0, high=1))
    if _has(evaluations, "divergence"):
        plots.insert(2, _plot("held-out images: divergence", evaluations, ["divergence"]))
    return plots


def _has(lines: list[dict], key: str) -> bool:
    return any(line.get(key) is not None for line in lines)


def _plot(
    title: str,
    lines: list[dict],
    keys: list[str],
    low: float | None = None,
    high: float | None = None,
) -> str:
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    for key, colour in zip(keys, COLOURS, strict=False):
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        marker = "o" if len(points) < 30 else ""
        axes.plot(*zip(*points, strict=True), label=key, color=colour, marker=marker, ms=3, lw=1.5)
    axes.set_xlabel("step")
    axes.set_ylim(low, high)
    axes.grid(color="#e6e8eb")
    axes.spines[["top", "right"]].set_visible(False)
    if len(keys) > 1:
        axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130)
    return _figure(title, buffer.getvalue(), "")


def _picture(caption: str, pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return _figure(caption, buffer.getvalue(), "pixels" if pixels.shape[1] < 400 else "")


def _figure(caption: str, png: bytes, css: str) -> str:
    data = base64.b64encode(png).decode()
    text = html.escape(caption)
    return (
        f"<figure><figcaption>{text}</figcaption>"
        f'<img class="{css}" alt="{text}" src="data:image/png;base64,{data}"></figure>'
    )


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = (f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in rows)
    return f"<table>{''.join(cells)}</table>"
