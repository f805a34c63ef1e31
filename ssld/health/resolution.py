"""The test size that `ssld fix` exports for: chosen on one half of the held-out images, reported on
the other, because the best of many numbers on the same images is too good on these images.

Neither half depends on anything but names, so that runs over the same images have the same halves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ssld.common.errors import InputError
from ssld.common.metrics import METRICS, images_of, rank
from ssld.health.intervals import wilson
from ssld.health.verdict import noted

if TYPE_CHECKING:
    from ssld.data.source import Source

FEW = 100
"""Images of a half below which one of them is more than a point: nothing is claimed then."""
CHOOSE = "choose"
"""Key of a row's metrics on the images that choose; its own are those of the images that report."""
SHARES = ("agreement1", "agreement5", "top1")


def halves(sources: Sequence[Source]) -> tuple[list[Source], list[Source]]:
    """The images that choose, and those that report: by a bit of a digest of each sample's id, so
    that an image that is there twice is in one half. Where one would be empty, both are all images.
    """
    import numpy as np

    from ssld.data.subset import Part

    found: tuple[list[Source], list[Source]] = ([], [])
    for source in sources:
        reports = np.array([_reports(source.sample_id(i)) for i in range(len(source))], bool)
        for half, rows in zip(found, (~reports, reports), strict=True):
            if rows.any():
                half.append(Part(source, np.flatnonzero(rows), keep=True))
    return found if all(found) else (list(sources), list(sources))  # equal, and known by that


def _reports(sample_id: str) -> bool:
    return bool(hashlib.blake2b(f"half/{sample_id}".encode(), digest_size=1).digest()[0] & 1)


def deciding(row: Mapping[str, Any], best_by: str) -> str:
    """The metric that chooses.

    Args:
        row: of a table of resolutions.
        best_by: `checkpoint.best`; a share, or else agreement, or where there is no teacher top-1.

    Raises:
        InputError: neither a teacher nor a label that the student knows.
    """
    metric = best_by if best_by in SHARES else "agreement1"
    metric = metric if metric in row[CHOOSE] else "top1"
    if metric not in row[CHOOSE]:
        raise InputError(
            "data.val: no held-out image has a label that the student knows, and there is no "
            "teacher, so nothing chooses the resolution: give labeled images"
        )
    return metric


def chosen(
    before: Sequence[dict[str, Any]],
    after: Sequence[dict[str, Any]],
    metric: str,
    num_classes: int,
) -> tuple[str, dict[str, Any]]:
    """Whether the best row is one `before` or `after` the fix, and that row, by the images that
    choose; of equal ones the one after, at the smallest size."""

    def worth(row: dict[str, Any]) -> tuple[bool, float]:
        return rank(noted(row[CHOOSE], metric, num_classes))

    rows = [("before", row) for row in before] + [("after", row) for row in after]
    return max(rows, key=lambda x: (worth(x[1]), x[0] == "after", -x[1]["size"]))


def said_of(resolution: Mapping[str, Any]) -> str:
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
    if min(choosing, reporting) < FEW:
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
