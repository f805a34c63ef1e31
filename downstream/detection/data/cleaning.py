"""Boxes that nothing can learn from are mended or dropped, and counted: see `boxes.py`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from downstream.dense.preflight import EXAMPLES, Finding, findings
from downstream.detection.data.annotations import Annotations
from downstream.detection.data.frames import Frames, turn_boxes, turn_points
from ssld.common.errors import InputError


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


def clean(annotations: Annotations, frames: Frames) -> Cleaned:
    """Into px of the upright image, cut at its edges, without what has no area.

    Raises:
        InputError: more than half would be dropped.
    """
    sizes, turns = frames.sizes[annotations.image], frames.turns[annotations.image]
    edges = sizes[:, [1, 0, 1, 0]].astype(np.float64)
    written = annotations.xyxy
    raw = turn_boxes(written * edges if annotations.shares else written, turns, sizes)
    unknown = (sizes == 0).any(1)
    degenerate = (written[:, 2:] <= written[:, :2]).any(1) & ~unknown
    cut = np.clip(raw, 0, edges)
    # Judged in float32, as it is trained on: a box of 1e-9 px has no size there.
    xyxy = cut.astype(np.float32)
    outside = (xyxy[:, 2:] <= xyxy[:, :2]).any(1) & ~degenerate & ~unknown
    dropped = _of_boxes(
        annotations,
        ("boxes without a width and height above 0", degenerate),
        ("boxes with no area inside the image", outside),
        ("boxes on unreadable images of unknown size", unknown),
    )
    bad = degenerate | outside | unknown
    if 2 * bad.sum() > len(bad):
        raise InputError(
            f"{annotations.path}: {bad.sum()} of {len(bad)} boxes would be dropped: "
            f"{', '.join(finding.line() for finding in dropped)}; check what the numbers mean"
        )
    over = np.where(bad, 0, np.abs(raw - cut).max(1, initial=0))
    fixed = _of_boxes(
        annotations,
        ("boxes over the edge by more than 1 px, cut", over > 1),
        ("boxes over the edge by rounding (at most 1 px), cut", (over > 0) & (over <= 1)),
    )
    areas = (cut[:, 2] - cut[:, 0]) * (cut[:, 3] - cut[:, 1])
    if annotations.areas is not None:
        stated = np.where(over > 0, np.minimum(annotations.areas, areas), annotations.areas)
        areas = np.where(np.isnan(annotations.areas), areas, stated)
    kept = np.flatnonzero(~bad)
    return Cleaned(
        kept,
        xyxy[kept],
        areas[kept].astype(np.float32),
        _turn_keypoints(annotations, kept, turns, sizes),
        fixed,
        dropped,
    )


def _turn_keypoints(
    annotations: Annotations, kept: np.ndarray, turns: np.ndarray, sizes: np.ndarray
) -> np.ndarray | None:
    if annotations.keypoints is None:
        return None
    points = annotations.keypoints[kept]
    turned = turn_points(points[..., :2], turns[kept], sizes[kept])
    labeled = points[..., 2:] > 0
    return np.where(labeled, np.concatenate([turned, points[..., 2:]], axis=-1), 0).astype(
        np.float32
    )


def _of_boxes(annotations: Annotations, *cases: tuple[str, np.ndarray]) -> list[Finding]:
    """Of those cases that occur; each has a bool [m]."""
    occurred: list[Finding] = []
    for what, mask in cases:
        first = np.flatnonzero(mask)[:EXAMPLES]
        occurred += findings(what, [annotations.where(int(j)) for j in first], int(mask.sum()))
    return occurred


def notice(annotations: Annotations, kept: np.ndarray, unreadable: dict[int, str]) -> list[Finding]:
    """What is left as it is.

    Args:
        kept: int64, indices of the boxes that are.
        unreadable: reasons by image.
    """
    rows = np.column_stack([annotations.image, annotations.labels, annotations.xyxy])[kept]
    first = np.unique(rows, axis=0, return_index=True)[1]
    again = np.zeros(len(annotations.image), bool)
    again[np.delete(kept, first)] = True
    names = annotations.names
    emptied = np.setdiff1d(annotations.image, annotations.image[kept])
    return [
        *_of_boxes(annotations, ("boxes that are there twice, with the same class", again)),
        *findings("images that lost all their boxes", [repr(names[i]) for i in emptied]),
        *findings(
            "images that cannot be read",
            [f"{names[i]!r}: {reason}" for i, reason in unreadable.items()],
        ),
    ]
