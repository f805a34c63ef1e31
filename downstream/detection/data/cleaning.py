"""Boxes that nothing can learn from are mended or dropped, and counted: see `boxes.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from downstream.dense.preflight import EXAMPLES, Finding
from downstream.detection.data.annotations import Annotations
from downstream.detection.data.frames import Frames, turn_boxes, turn_points
from ssld.common.errors import InputError


def where(found: Annotations, j: int) -> str:
    return f"{found.places(j)} of image {found.names[found.image[j]]!r}"


@dataclass(frozen=True)
class Cleaned:
    """What is left of m boxes."""

    kept: np.ndarray
    """int64, indices."""
    xyxy: np.ndarray
    areas: np.ndarray
    keypoints: np.ndarray | None
    fixed: list[Finding]
    dropped: list[Finding]


def clean(found: Annotations, frames: Frames) -> Cleaned:
    """Into px of the upright image, cut at its edges, without what has no area.

    Raises:
        InputError: more than half would be dropped.
    """
    sizes, turns = frames.sizes[found.image], frames.turns[found.image]
    edges = sizes[:, [1, 0, 1, 0]].astype(np.float64)
    raw = turn_boxes(found.xyxy * edges if found.shares else found.xyxy, turns, sizes)
    unknown = (sizes == 0).any(1)
    degenerate = (found.xyxy[:, 2:] <= found.xyxy[:, :2]).any(1) & ~unknown
    cut = np.clip(raw, 0, edges)
    xyxy = cut.astype(np.float32)
    outside = (xyxy[:, 2:] <= xyxy[:, :2]).any(1) & ~degenerate & ~unknown
    dropped = _findings(
        found,
        ("boxes without a width and height above 0", degenerate),
        ("boxes with no area inside the image", outside),
        ("boxes on unreadable images of unknown size", unknown),
    )
    bad = degenerate | outside | unknown
    if 2 * bad.sum() > len(bad):
        raise InputError(
            f"{found.path}: {bad.sum()} of {len(bad)} boxes would be dropped: "
            f"{', '.join(finding.line() for finding in dropped)}; check what the numbers mean"
        )
    over = np.where(bad, 0, np.abs(raw - cut).max(1, initial=0))
    fixed = _findings(
        found,
        ("boxes over the edge by more than 1 px, cut", over > 1),
        ("boxes over the edge by rounding (at most 1 px), cut", (over > 0) & (over <= 1)),
    )
    areas = (cut[:, 2] - cut[:, 0]) * (cut[:, 3] - cut[:, 1])
    if found.areas is not None:
        stated = np.where(over > 0, np.minimum(found.areas, areas), found.areas)
        areas = np.where(np.isnan(found.areas), areas, stated)
    kept = np.flatnonzero(~bad)
    return Cleaned(
        kept,
        xyxy[kept],
        areas[kept].astype(np.float32),
        _turn_keypoints(found, kept, turns, sizes),
        fixed,
        dropped,
    )


def _turn_keypoints(
    found: Annotations, kept: np.ndarray, turns: np.ndarray, sizes: np.ndarray
) -> np.ndarray | None:
    if found.keypoints is None:
        return None
    points = found.keypoints[kept]
    turned = turn_points(points[..., :2], turns[kept], sizes[kept])
    labeled = points[..., 2:] > 0
    return np.where(labeled, np.concatenate([turned, points[..., 2:]], axis=-1), 0).astype(
        np.float32
    )


def _findings(found: Annotations, *cases: tuple[str, np.ndarray]) -> list[Finding]:
    """Of those cases that occur; each has a bool [m]."""
    return [
        Finding(what, int(mask.sum()), tuple(where(found, int(j)) for j in rows[:EXAMPLES]))
        for what, mask in cases
        if len(rows := np.flatnonzero(mask))
    ]


def notice(found: Annotations, kept: np.ndarray, unreadable: dict[int, str]) -> list[Finding]:
    """What is left as it is.

    Args:
        kept: int64, indices of the boxes that are.
        unreadable: reasons by image.
    """
    rows = np.column_stack([found.image, found.labels, found.xyxy])[kept]
    first = np.unique(rows, axis=0, return_index=True)[1]
    again = np.zeros(len(found.image), bool)
    again[np.delete(kept, first)] = True
    emptied = np.setdiff1d(found.image, found.image[kept])
    return [
        *_findings(found, ("boxes that are there twice, with the same class", again)),
        *_of_images("images that lost all their boxes", [repr(found.names[i]) for i in emptied]),
        *_of_images(
            "images that cannot be read",
            [f"{found.names[i]!r}: {reason}" for i, reason in unreadable.items()],
        ),
    ]


def _of_images(what: str, places: Sequence[str]) -> list[Finding]:
    return [Finding(what, len(places), tuple(places[:EXAMPLES]))] if places else []
