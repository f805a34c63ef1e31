"""curves.png of a release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssld.report import plots

PLOTS = (
    ("loss, training batches", "train", {"loss": "loss"}, None),
    ("divergence, held-out images", "eval", {"divergence": "divergence"}, None),
    (
        "held-out images",
        "eval",
        {"agreement1": "the teacher's best", "top1": "top-1", "knn": "nearest neighbours"},
        1.02,
    ),
)
"""Title, kind of the lines, {key: label} and the upper end of each plot."""


def draw_curves(path: Path, lines: list[dict[str, Any]], step: int | None) -> None:
    """Training loss, and what evaluations on held-out images found, over steps."""
    shown = [p for p in PLOTS if any(x["kind"] == p[1] and x.keys() & p[2].keys() for x in lines)]
    if not shown:
        return
    figure = plots.new_figure()
    figure.set_size_inches(4.4 * len(shown), 2.8)
    parts = figure.subfigures(1, len(shown), squeeze=False)[0]
    for part, (title, kind, names, high) in zip(parts, shown, strict=True):
        plot = plots.axes(part, "step")
        plot.set_title(title, fontsize=10)
        for (key, label), colour in zip(names.items(), plots.COLOURS, strict=False):
            points = [(x["step"], x[key]) for x in lines if x["kind"] == kind and key in x]
            if points:
                plots.line(plot, points, colour, label=label)
        plot.axvline(step or 0, color=plots.GREY, lw=1, ls=":")
        plot.set_xlim(left=0)
        plot.set_ylim(0, high)
        if len(names) > 1:
            plot.legend(frameon=False, fontsize=8)
    path.write_bytes(plots.png(figure, metadata={"Software": None}))
