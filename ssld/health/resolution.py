"""What a resolution fix brought, in words; `ssld/distill/fixres.py` says how it chooses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssld.common.metrics import METRICS, images_of, wilson

FEW_IMAGES = 100
"""Images of a half below which one of them is more than a point: nothing is claimed then."""


def describe_choice(resolution: Mapping[str, Any]) -> str:
    """What a fix brought, on the images that chose nothing; without a full stop.

    Args:
        resolution: of run.json.
    """
    came = resolution["classifier"] == "before"
    at = f"{resolution['chosen']} px, its classifier {'as it came' if came else 'fixed'}"
    counts = resolution.get("images")
    if counts is None:  # by an ssld that had no halves
        return f"exported for {at}; chosen on these very images, so a little too good"
    if counts["same"]:
        return f"exported for {at}; {counts['reported_on']} image(s) chose and report: no claim"
    choosing, reporting = counts["chosen_on"], counts["reported_on"]
    which = f"chosen on {choosing:,} held-out images, reported on {reporting:,} others"
    if min(choosing, reporting) < FEW_IMAGES:
        return f"exported for {at}; {which}: too few to say what it brought"
    if came and resolution["before"]["size"] == resolution["chosen"]:
        return f"exported for {at}; {which}: the fix brought nothing"
    return f"exported for {at}; {which}: {_difference(resolution)}"


def _difference(resolution: Mapping[str, Any]) -> str:
    metric, rows = resolution["metric"], (resolution["before"], resolution["metrics"])
    if any(metric not in row for row in rows):
        return "nothing is known of these"
    intervals = [_interval(row, metric) for row in rows]
    told = [
        f"{row[metric]:.1%} [{low:.1%} to {high:.1%}] at {row['size']} px"
        for row, (low, high) in zip(rows, intervals, strict=True)
    ]
    (_, high), (low, _) = intervals
    clear = "" if low > high else ", and as these intervals overlap no gain is shown"
    return f"{METRICS[metric].label} {told[1]}, {told[0]} as it came{clear}"


def _interval(row: Mapping[str, Any], metric: str) -> tuple[float, float]:
    count = images_of(metric, row) or 0
    return wilson(row[metric] * count, count)
