"""The test size that a resolution fix exports for: chosen on one half of the held-out images,
reported on the other, because the best of many numbers on the same images is too good on these.

Neither half depends on anything but names, so that runs over the same images have the same halves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssld.common.errors import InputError
from ssld.common.metrics import rank
from ssld.data.source import Source
from ssld.data.subset import Subset
from ssld.health.verdict import noted

CHOOSE = "choose"
"""Key of a row's metrics on the images that choose; its own are those of the images that report."""
SHARES = ("agreement1", "agreement5", "top1")


def halves(sources: Sequence[Source]) -> tuple[list[Source], list[Source]]:
    """The images that choose, and those that report: by a bit of a digest of each sample's id, so
    that an image that is there twice is in one half. Where one would be empty, both are all images.
    """
    parts: tuple[list[Source], list[Source]] = ([], [])
    for source in sources:
        reports = np.array([_reports(source.sample_id(i)) for i in range(len(source))], bool)
        for half, rows in zip(parts, (~reports, reports), strict=True):
            if rows.any():
                half.append(Subset(source, np.flatnonzero(rows), keep=True))
    return parts if all(parts) else (list(sources), list(sources))  # equal, and known by that


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
