"""Keypoints that are checked against their images and boxes, mended and counted, as boxes are (see
`boxes.py`).

error   more than half of the labeled ones outside of their images, or of their boxes; shares where
        px belong; sets that are trained on together and have other keypoints
fixed   one that lies over the image's edge is at the edge (by at most 1 px, which is rounding) or
        not labeled (by more: nothing there shows it)
noticed one far outside of its object's box, which no detector finds there; one that is labeled at
        0, 0; one with a place and visibility 0, which is taken as not labeled; an object without
        any; a keypoint that is labeled nowhere
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from downstream.dense.preflight import EXAMPLES, Finding, findings
from downstream.detection.data.annotations import Annotations
from downstream.detection.data.frames import Frames, turn_points
from downstream.detection.data.keypoints import Keypoints
from ssld.common.errors import InputError

ROUNDING_PX = 1.0
BOX_SLACK, BOX_SLACK_PX = 0.1, 2.0
"""Of the box's longer side, or px: what a keypoint may lie outside of its box. Boxes drawn by hand
end at what is seen, keypoints such as ankles lie on its edge."""
NAMED = 10
"""Keypoints named in a sentence."""


@dataclass(frozen=True)
class KeypointCounts:
    """Of a keypoint, over the objects of classes that have any."""

    name: str
    visible: int
    hidden: int
    unlabeled: int


@dataclass(frozen=True)
class CleanedPoints:
    """What is left of them."""

    points: np.ndarray | None = None
    """float32 [kept, k, 3]: x, y in px of the upright image, visibility; 0 where not labeled."""
    counts: list[KeypointCounts] = field(default_factory=list)
    fixed: list[Finding] = field(default_factory=list)
    noticed: list[Finding] = field(default_factory=list)


def clean_points(
    annotations: Annotations, kept: np.ndarray, xyxy: np.ndarray, frames: Frames
) -> CleanedPoints:
    """Into px of the upright image.

    Args:
        kept: int64, indices of the objects that are.
        xyxy: float [kept, 4], their boxes.

    Raises:
        InputError: see above.
    """
    if annotations.points is None or annotations.keypoints is None:
        return CleanedPoints()
    image = annotations.image[kept]
    sizes, turns = frames.sizes[image], frames.turns[image]
    edges = sizes[:, None, ::-1].astype(np.float64)  # [kept, 1, 2]: width, height
    written = annotations.points[kept]
    places, visibility = written[..., :2], written[..., 2]
    labeled = visibility > 0
    if not annotations.shares:
        _refuse_shares(annotations.path, places, labeled, edges)
    raw = turn_points(places * edges if annotations.shares else places, turns, sizes)
    over = np.maximum(-raw, raw - edges).max(-1)  # [kept, k]
    counted = labeled & ~annotations.crowd[kept][:, None]
    _refuse_outside(annotations, "images", over > ROUNDING_PX, counted, raw, edges)
    lost = labeled & (over > ROUNDING_PX)
    points = np.clip(raw, 0, edges)
    sides = xyxy[:, None, 2:] - xyxy[:, None, :2]
    away = np.maximum(xyxy[:, None, :2] - points, points - xyxy[:, None, 2:]).max(-1)
    far = counted & ~lost & (away > np.maximum(BOX_SLACK_PX, BOX_SLACK * sides.max(-1)))
    _refuse_outside(annotations, "objects' boxes", far, counted & ~lost, raw, edges)
    visibility = np.where(lost, 0, visibility)
    labeled = visibility > 0

    def found(what: str, mask: np.ndarray) -> list[Finding]:
        return _findings(annotations, kept, what, mask)

    rounded = labeled & (over > 0)
    zero = 0.0 if annotations.shares else 0.5  # COCO's are at pixels' centres here
    at_zero = (places == zero).all(-1)
    placed = ~at_zero & (places != 0).any(-1) & (written[..., 2] == 0)
    having = np.isin(annotations.labels[kept], annotations.labels[kept][labeled.any(1)])
    having &= ~annotations.crowd[kept]
    counts = _counts(annotations.keypoints, visibility[having])
    never = [entry.name for entry in counts if not entry.visible + entry.hidden]
    return CleanedPoints(
        np.where(labeled[..., None], np.dstack([points, visibility]), 0).astype(np.float32),
        counts,
        [
            *found("keypoints over the image's edge by more than 1 px, not labeled", lost),
            *found("keypoints over the image's edge by rounding (at most 1 px), moved", rounded),
        ],
        [
            *found("keypoints far outside of their object's box", far),
            *found("keypoints labeled at 0, 0, where many tools put those that are not",
                   labeled & at_zero),
            *found("keypoints with a place but visibility 0, taken as not labeled", placed),
            *found("objects without a labeled keypoint", (having & ~labeled.any(1))[:, None]),
            *findings("keypoints that are labeled nowhere", never),
        ],
    )  # fmt: skip


def _refuse_shares(path: str, places: np.ndarray, labeled: np.ndarray, edges: np.ndarray) -> None:
    if labeled.any() and edges.min() > 2 and (abs(places[labeled] - 0.5) <= 1).all():
        raise InputError(
            f"{path}: no labeled keypoint has a number above 1, so they are shares of the image's "
            "size; COCO's are px: multiply them by width and height"
        )


def _refuse_outside(
    annotations: Annotations,
    what: str,
    outside: np.ndarray,
    labeled: np.ndarray,
    raw: np.ndarray,
    edges: np.ndarray,
) -> None:
    """Raise InputError where most labeled keypoints are, bool [kept, k]."""
    wrong, total = int((outside & labeled).sum()), int(labeled.sum())
    if 2 * wrong > total:
        swapped = raw[labeled][:, ::-1] <= np.broadcast_to(edges, raw.shape)[labeled]
        hint = "; in the order y, x they would be inside" * bool(
            what == "images" and swapped.all(1).mean() > 0.99
        )
        raise InputError(
            f"{annotations.path}: {wrong} of {total} labeled keypoints lie outside of their {what}"
            f"{hint}; {annotations.format}'s are x, y, visibility, of the whole image that was "
            "annotated"
        )


def _findings(
    annotations: Annotations, kept: np.ndarray, what: str, mask: np.ndarray
) -> list[Finding]:
    """Of bool [kept, k]; an object is named once."""
    rows = kept[np.flatnonzero(mask.any(1))[:EXAMPLES]]
    return findings(what, [annotations.where(int(j)) for j in rows], int(mask.sum()))


def _counts(keypoints: Keypoints, visibility: np.ndarray) -> list[KeypointCounts]:
    """Of float [n, k]."""
    columns = [[int((visibility == v).sum(0)[i]) for v in (2, 1, 0)] for i in range(
        len(keypoints.names)
    )]  # fmt: skip
    return [
        KeypointCounts(name, *column) for name, column in zip(keypoints.names, columns, strict=True)
    ]


class WithKeypoints(Protocol):
    """A `boxes.BoxSource`."""

    path: str
    keypoints: Keypoints | None


def common_keypoints(sources: Sequence[WithKeypoints]) -> Keypoints:
    """The keypoints of sets that one network learns and finds. Names and pairs must agree; lines
    are the first set's.

    Raises:
        InputError: a set has none, or others, or in another order.
    """
    first = sources[0]
    for source in sources:
        if source.keypoints is None:
            raise InputError(
                f"{source.path}: has no keypoints; give a set whose categories name them "
                "(categories[].keypoints), or choose a detector of boxes"
            )
    assert first.keypoints is not None
    for source in sources[1:]:
        assert source.keypoints is not None
        _require_same(first.path, first.keypoints, source.path, source.keypoints)
    return first.keypoints


def _require_same(path: str, ours: Keypoints, other_path: str, theirs: Keypoints) -> None:
    if ours.names != theirs.names:
        if sorted(ours.names) == sorted(theirs.names):
            what = "the same keypoints in another order"
        elif len(ours.names) != len(theirs.names):
            what = f"{len(theirs.names)} keypoints and not {len(ours.names)}"
        else:
            what = "other keypoints"
        raise InputError(
            f"{other_path}: has {what}: {_listed(theirs.names)}; {path} has {_listed(ours.names)}; "
            "give sets with the same keypoints in the same order"
        )
    if set(ours.flip_pairs) != set(theirs.flip_pairs):
        raise InputError(
            f"{other_path}: in a mirror other keypoints change places than in {path}: "
            f"{_paired(theirs)}, there {_paired(ours)}; give both files the same info.flip_pairs"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + ", ..." * (len(names) > NAMED)


def _paired(keypoints: Keypoints) -> str:
    names = keypoints.names
    return _listed([f"{names[a]} and {names[b]}" for a, b in keypoints.flip_pairs]) or "none"
