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
    best, moments = table["chosen"], ("before", "after")
    series = {moment: [(row["size"], row[metric]) for row in table[moment]] for moment in moments}
    rows = [
        [f"{a['size']} px"] + [f"{row[key]:.2%}" if key in row else "–" for key in NAMES
                               for row in (b, a)]
        for b, a in zip(table["before"], table["after"], strict=True)
    ]  # fmt: skip
    head = [f"{NAMES[key]} {moment}" for key in NAMES for moment in moments]
    fixed = table["classifier"] == "after"
    note = (
        f"Trained at {table['trained_at']} px, its classifier fixed at {table['fixed_at']} px. "
        f"Exported at {best} px, the best by {name}, "
        f"{'after the fix' if fixed else 'as it came: the fix brought nothing'}; chosen on these "
        "very images, so a little too good."
    )
    curve = page.curves(f"{name} over test size", series, xlabel="px")
    return [
        f'<p class="note">{note}</p>',
        page.table(rows, ["held-out images at", *head]),
        f'<div class="row">{curve}</div>',
    ]
