"""curves.png of a release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssld.report import page


def draw_curves(path: Path, lines: list[dict[str, Any]], step: int | None) -> None:
    """Training loss, and what evaluations on held-out images found, over steps."""
    shares = {"agreement1": "the teacher's best", "top1": "top-1", "knn": "nearest neighbours"}
    plots = [
        ("loss, training batches", "train", {"loss": "loss"}, None),
        ("divergence, held-out images", "eval", {"divergence": "divergence"}, None),
        ("held-out images", "eval", shares, 1.02),
    ]
    shown = [p for p in plots if any(x["kind"] == p[1] and x.keys() & p[2].keys() for x in lines)]
    if not shown:
        return
    figure = page.new_figure()
    figure.set_size_inches(4.4 * len(shown), 2.8)
    parts = figure.subfigures(1, len(shown), squeeze=False)[0]
    for part, (title, kind, names, high) in zip(parts, shown, strict=True):
        plot = page.axes(part, "step")
        plot.set_title(title, fontsize=10)
        for (key, label), colour in zip(names.items(), page.COLOURS, strict=False):
            xy = [(x["step"], x[key]) for x in lines if x["kind"] == kind and key in x]
            marker = "o" if len(xy) < 30 else ""
            if xy:
                plot.plot(*zip(*xy, strict=True), label=label, color=colour, marker=marker, ms=3)
        plot.axvline(step or 0, color="#57606a", lw=1, ls=":")
        plot.set_xlim(left=0)
        plot.set_ylim(0, high)
        if len(names) > 1:
            plot.legend(frameon=False, fontsize=8)
    path.write_bytes(page.png(figure, metadata={"Software": None}).getvalue())
