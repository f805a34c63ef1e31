"""Keypoints that are checked against their images and boxes, mended and counted, as boxes are (see
`boxes.py`).

error   more than half of the labeled ones outside of their images, or of their boxes; shares where
        px belong; none labeled in the whole set; sets that are trained on together and have other
        keypoints: of a run that learns keypoints (`common_keypoints`), as boxes may be learned from
        such a set, whose report says so
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
NONE_LABELED = "no keypoint is labeled"
NAMED = 10
"""Keypoints named in a sentence."""


@dataclass(frozen=True)
class KeypointCounts:
    """Of a keypoint, over the objects of classes that have any."""

    name: str
    visible: int
    hidden: int
    unlabeled: int

    @property
    def labeled(self) -> int:
        return self.visible + self.hidden


@dataclass(frozen=True)
class CleanedPoints:
    """What is left of them."""

    points: np.ndarray | None = None
    """float32 [kept, k, 3]: x, y in px of the upright image, visibility; 0 where not labeled."""
    fault: str = ""
    """Why they cannot be learned from."""
    fixed: list[Finding] = field(default_factory=list)
    noticed: list[Finding] = field(default_factory=list)


def clean_points(
    annotations: Annotations, kept: np.ndarray, xyxy: np.ndarray, frames: Frames
) -> CleanedPoints:
    """Into px of the upright image.

    Args:
        kept: int64, indices of the objects that are.
        xyxy: float [kept, 4], their boxes.
    """
    if annotations.points is None or annotations.keypoints is None:
        return CleanedPoints()
    image = annotations.image[kept]
    sizes, turns = frames.sizes[image], frames.turns[image]
    edges = sizes[:, None, ::-1].astype(np.float64)  # [kept, 1, 2]: width, height
    written = annotations.points[kept]
    places, visibility = written[..., :2], written[..., 2]
    labeled = visibility > 0
    raw = turn_points(places * edges if annotations.shares else places, turns, sizes)
    over = np.maximum(-raw, raw - edges).max(-1)  # [kept, k]
    counted = labeled & ~annotations.crowd[kept][:, None]
    lost = labeled & (over > ROUNDING_PX)
    points = np.clip(raw, 0, edges)
    sides = xyxy[:, None, 2:] - xyxy[:, None, :2]
    away = np.maximum(xyxy[:, None, :2] - points, points - xyxy[:, None, 2:]).max(-1)
    far = counted & ~lost & (away > np.maximum(BOX_SLACK_PX, BOX_SLACK * sides.max(-1)))
    fault = (
        (NONE_LABELED if not counted.any() else "")
        or (_only_shares(places[counted], edges) if not annotations.shares else "")
        or _mostly(counted & lost, counted, "images", raw, edges)
        or _mostly(far, counted & ~lost, "objects' boxes", raw, edges)
    )
    visibility = np.where(lost, 0, visibility)
    labeled = visibility > 0

    def found(what: str, mask: np.ndarray) -> list[Finding]:
        return _findings(annotations, kept, what, mask)

    rounded = labeled & (over > 0)
    zero = 0.0 if annotations.shares else 0.5  # COCO's are at pixels' centres here
    at_zero = (places == zero).all(-1)
    placed = ~at_zero & (places != 0).any(-1) & (written[..., 2] == 0)
    cleaned = np.where(labeled[..., None], np.dstack([points, visibility]), 0).astype(np.float32)
    learned, labels = ~annotations.crowd[kept], annotations.labels[kept]
    counts = count_points(annotations.keypoints, cleaned, labels, learned)
    never = [entry.name for entry in counts if not entry.labeled]
    without = _of_posed_classes(labeled, labels, learned) & ~labeled.any(1)
    return CleanedPoints(
        cleaned,
        fault,
        [
            *found("keypoints over the image's edge by more than 1 px, not labeled", lost),
            *found("keypoints over the image's edge by rounding (at most 1 px), moved", rounded),
        ],
        [
            *found("keypoints far outside of their object's box", far),
            *found("keypoints labeled at 0, 0, where many tools put those that are not",
                   labeled & at_zero),
            *found("keypoints with a place but visibility 0, taken as not labeled", placed),
            *found("objects without a labeled keypoint", without[:, None]),
            *findings("keypoints that are labeled nowhere", never),
        ],
    )  # fmt: skip


def _only_shares(places: np.ndarray, edges: np.ndarray) -> str:
    """Of labeled keypoints, float64 [n, 2], at pixels' centres."""
    if edges.min() > 2 and (abs(places - 0.5) <= 1).all():
        return (
            "no labeled keypoint has a number above 1: they are shares of the image's size, not px"
        )
    return ""


def _mostly(
    outside: np.ndarray, labeled: np.ndarray, of: str, raw: np.ndarray, edges: np.ndarray
) -> str:
    """That most labeled keypoints, bool [kept, k], are outside."""
    wrong, total = int(outside.sum()), int(labeled.sum())
    if 2 * wrong <= total:
        return ""
    swapped = (raw[labeled][:, ::-1] <= np.broadcast_to(edges, raw.shape)[labeled]).all(1)
    hint = ", but not in the order y, x" if of == "images" and swapped.mean() > 0.99 else ""
    return f"{wrong} of {total} labeled keypoints lie outside of their {of}{hint}"


def _findings(
    annotations: Annotations, kept: np.ndarray, what: str, mask: np.ndarray
) -> list[Finding]:
    """Of bool [kept, k]; an object is named once."""
    rows = kept[np.flatnonzero(mask.any(1))[:EXAMPLES]]
    return findings(what, [annotations.where(int(j)) for j in rows], int(mask.sum()))


def count_points(
    keypoints: Keypoints, points: np.ndarray, labels: np.ndarray, counted: np.ndarray
) -> list[KeypointCounts]:
    """
    Args:
        points: float [n, k, 3] of n objects.
        labels: int64 [n], class numbers.
        counted: bool [n], is no crowd.
    """
    visibility = points[..., 2]
    chosen = visibility[_of_posed_classes(visibility > 0, labels, counted)]
    columns = np.stack([(chosen == v).sum(0) for v in (2, 1, 0)], axis=1).tolist()
    return [
        KeypointCounts(name, *column) for name, column in zip(keypoints.names, columns, strict=True)
    ]


def _of_posed_classes(labeled: np.ndarray, labels: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """bool [n]: objects of classes of which one has a labeled keypoint; a set's other classes have
    none."""
    return np.isin(labels, labels[labeled.any(1)]) & counted


def none_labeled(counts: Sequence[KeypointCounts]) -> str:
    """That no keypoint is labeled, where there are any."""
    return NONE_LABELED if counts and not any(x.labeled for x in counts) else ""


class WithKeypoints(Protocol):
    """A `boxes.BoxSource`."""

    path: str
    keypoints: Keypoints | None
    keypoint_fault: str


def common_keypoints(
    sources: Sequence[WithKeypoints], val: Sequence[WithKeypoints] = ()
) -> Keypoints:
    """The keypoints of sets that one network learns (`sources`) and finds (`val`): the first one's.
    Names must agree everywhere, pairs where images are mirrored; lines need not.

    Raises:
        InputError: a set has none, or none that is labeled right, or others, or in another order,
            or to train on with other pairs.
    """
    first = sources[0]
    for source in (*sources, *val):
        if source.keypoints is None:
            raise InputError(
                f"{source.path}: has no keypoints; give a set whose categories name them "
                "(categories[].keypoints), or choose a detector of boxes"
            )
        if source.keypoint_fault:
            raise InputError(
                f"{source.path}: {source.keypoint_fault}; give x, y, visibility of each in the "
                "image that was annotated, visibility above 0"
            )
    assert first.keypoints is not None
    for i, source in enumerate((*sources, *val)):
        assert source.keypoints is not None
        mirrored = i < len(sources)
        _require_same(first.path, first.keypoints, source.path, source.keypoints, mirrored)
    return first.keypoints


def _require_same(
    path: str, ours: Keypoints, other_path: str, theirs: Keypoints, mirrored: bool
) -> None:
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
    if mirrored and set(ours.flip_pairs) != set(theirs.flip_pairs):
        raise InputError(
            f"{other_path}: in a mirror other keypoints change places than in {path}: "
            f"{_paired(theirs)}, there {_paired(ours)}; give both files the same info.flip_pairs"
        )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + ", ..." * (len(names) > NAMED)


def _paired(keypoints: Keypoints) -> str:
    names = keypoints.names
    return _listed([f"{names[a]} and {names[b]}" for a, b in keypoints.flip_pairs]) or "none"
