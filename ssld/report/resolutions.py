"""Accuracy over test sizes, before and after a resolution fix: a table and a curve."""

from __future__ import annotations

from typing import Any

from ssld.report import page

NAMES = {"top1": "top-1", "agreement1": "agreement@1"}


def figures(table: dict[str, Any]) -> list[str]:
    """Elements of a page.

    Args:
        table: what a fix's resolutions.json holds, finished.
    """
    metric, name = table["metric"], NAMES[table["metric"]]
    best = table["chosen"]
    series = {
        moment: [(row["size"], row[metric]) for row in table[moment]]
        for moment in ("before", "after")
    }
    rows = [
        [f"{a['size']} px{', exported' if a['size'] == best else ''}"]
        + [f"{row[key]:.2%}" if key in row else "–" for key in NAMES for row in (b, a)]
        for b, a in zip(table["before"], table["after"], strict=True)
    ]
    head = [f"{NAMES[key]} {moment}" for key in NAMES for moment in ("before", "after")]
    note = (
        f'<p class="note">Trained at {table["trained_at"]} px, its classifier fixed at '
        f"{table['fixed_at']} px, exported at {best} px, the best by {name} afterwards.</p>"
    )
    curve = page.curves(f"{name} over test size", series, xlabel="px")
    return [
        note,
        page.table(rows, ["held-out images at", *head]),
        f'<div class="row">{curve}</div>',
    ]
