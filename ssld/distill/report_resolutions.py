"""Accuracy over test sizes, before and after a resolution fix, as `resolutions.html` shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ssld.common.metrics import METRICS
from ssld.health.resolution import describe_choice
from ssld.report import page, plots

SHOWN = ("top1", "agreement1")
MOMENTS = ("before", "after")


def resolutions(run: Path, resolution: dict[str, Any] | None) -> dict[str, Any]:
    """Note, table and curve; nothing of a run that is no finished fix.

    Args:
        resolution: what the run's run.json says.
    """
    path = run / "resolutions.json"
    if not resolution or not path.is_file():
        return {}
    table = json.loads(path.read_text(encoding="utf-8"))
    metric = table["metric"]
    series = {
        moment: [(row["size"], row[metric]) for row in table[moment] if metric in row]
        for moment in MOMENTS
    }
    rows = [
        [f"{after['size']} px"] + [f"{row[key]:.2%}" if key in row else "–" for key in SHOWN
                                   for row in (before, after)]
        for before, after in zip(table["before"], table["after"], strict=True)
    ]  # fmt: skip
    brought = describe_choice(resolution)
    note = (
        f"Trained at {table['trained_at']} px, its classifier fixed at {table['fixed_at']} px. "
        f"{brought[:1].upper()}{brought[1:]}."
    )
    if "images" in table:
        note += " Table and curve are of the images that report."
    head = [f"{METRICS[key].label} {moment}" for key in SHOWN for moment in MOMENTS]
    curve = plots.curves(series, xlabel="px")
    return {
        "note": note,
        "head": ["held-out images at", *head],
        "rows": rows,
        "curve": page.plot(f"{METRICS[metric].label} over test size", curve),
    }
