"""The page of `ssld compare`: tables, and a plot of each metric with a line a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from ssld.common.metrics import COMPARED, METRICS, NUMBER, SHARE, Metric
from ssld.compare.seen_run import SeenRun
from ssld.report import page, plots

PLOTS = ("loss", *COMPARED, "lr", "images_per_second")
DASHES = ("solid", "dashed", "dotted")
"""For more runs than there are colours."""
Results = dict[str, list[tuple[str, bool]]]
"""Rows by their heading: for each run the value, and whether it is the best."""


@dataclass(frozen=True)
class Comparison:
    """What is printed and drawn."""

    runs: list[SeenRun]
    settings: list[list[str]]
    """Setting and its value in each run."""
    results: Results
    verdicts: list[str]
    warnings: list[str]


def write_report(path: Path, comparison: Comparison) -> None:
    """Write the page, one file."""
    styles = [_style(i) for i in range(len(comparison.runs))]
    page.write_page(
        path,
        "ssld/compare/report.html",
        labels=[run.label for run in comparison.runs],
        styles=styles,
        warnings=comparison.warnings,
        settings=comparison.settings,
        results=comparison.results,
        verdicts=comparison.verdicts,
        curves=overlays(comparison.runs),
    )


def _style(number: int) -> tuple[str, str]:
    """A run's colour and dashes, the same everywhere."""
    count = len(plots.COLOURS)
    return plots.COLOURS[number % count], DASHES[number // count % len(DASHES)]


def overlays(runs: Sequence[SeenRun]) -> list[Markup]:
    """A plot of each metric that some run has, over epochs, as batch sizes may differ."""
    figures = []
    for key in PLOTS:
        metric = METRICS.get(key, Metric(key.replace("_", " "), format=NUMBER))
        series = [run.points("eval" if key in METRICS else "train", key) for run in runs]
        if not any(series):
            continue
        figure = plots.new_figure()
        plot = plots.axes(figure, "epoch")
        for i, points in enumerate(series):
            colour, dashes = _style(i)
            plots.line(plot, points, colour, ls=dashes)
        plot.ticklabel_format(useOffset=False)
        low, high = plot.get_ylim()
        if metric.format == SHARE:
            plot.set_ylim(max(low, -0.02), min(high, 1.02))
        elif key != "loss":  # of which some can be below 0
            plot.set_ylim(bottom=0)
        figures.append(page.plot(metric.label, figure))
    return figures
