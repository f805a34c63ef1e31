"""Accuracy over test sizes, before and after a resolution fix: a table and a curve."""

from __future__ import annotations

import html
from typing import Any

from ssld.common.metrics import METRICS
from ssld.health.resolution import said_of
from ssld.report import page

SHOWN = ("top1", "agreement1")


def figures(table: dict[str, Any], resolution: dict[str, Any]) -> list[str]:
    """Elements of a page.

    Args:
        table: what a fix's resolutions.json holds, finished.
        resolution: what its run.json says.
    """
    metric, name = table["metric"], METRICS[table["metric"]].label
    moments = ("before", "after")
    series = {
        moment: [(row["size"], row[metric]) for row in table[moment] if metric in row]
        for moment in moments
    }
    rows = [
        [f"{a['size']} px"] + [f"{row[key]:.2%}" if key in row else "–" for key in SHOWN
                               for row in (b, a)]
        for b, a in zip(table["before"], table["after"], strict=True)
    ]  # fmt: skip
    head = [f"{METRICS[key].label} {moment}" for key in SHOWN for moment in moments]
    said = said_of(resolution)
    note = (
        f"Trained at {table['trained_at']} px, its classifier fixed at {table['fixed_at']} px. "
        f"{said[:1].upper()}{said[1:]}."
    )
    if "images" in table:
        note += " Table and curve are of the images that report."
    curve = page.curves(f"{name} over test size", series, xlabel="px")
    return [
        f'<p class="note">{html.escape(note)}</p>',
        page.table(rows, ["held-out images at", *head]),
        f'<div class="row">{curve}</div>',
    ]
