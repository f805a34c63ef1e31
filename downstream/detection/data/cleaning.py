"""Boxes that nothing can learn from are mended or dropped, and counted: see `boxes.py`.

And boxes that are written in another convention than their format's are refused: corners where
sizes belong, shares where px do. Elsewhere that gives an average precision of about 0 and no
message. A set is refused where its boxes do not lie in their images, but all of them do if they are
read in another of the usual ways; and where most of them reach far over the edge in every reading.
Boxes are held against the sizes of the images' own files, so a set that states none is judged, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from downstream.dense.preflight import EXAMPLES, Finding, findings
from downstream.detection.data.annotations import Annotations
from downstream.detection.data.frames import Frames, turn_boxes
from ssld.common.errors import InputError

CORNERS = "x1, y1, x2, y2"
SIZES = "x, y, width, height"
CENTRES = "centre x, centre y, width, height"
OWN = {
    "COCO": SIZES, "VOC": CORNERS, "YOLO": CENTRES, "Create ML": CENTRES, "labelme": CORNERS,
    "CVAT": CORNERS,
}  # fmt: skip
"""What the four numbers of each format are."""
MANY_BOXES, SUSPECT_SHARE = 10, 0.05
"""Boxes far outside from which on this share of all is enough; below, it takes more than half."""
FITTING_SHARE = 0.99
"""Of the boxes, which lie in their images in the reading that was meant."""
SLACK = 0.05
"""Of a side, or 2 px: what a box may reach over the edge by a hasty hand."""


@dataclass(frozen=True)
class Cleaned:
    """What is left of m boxes."""

    kept: np.ndarray
    """int64, indices."""
    xyxy: np.ndarray
    areas: np.ndarray
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
    # raw: float64 [m, 4] px of the upright image, before it is cut.
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
        fixed,
        dropped,
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


def refuse_other_conventions(boxes: Annotations, frames: Frames) -> None:
    """
    Raises:
        InputError: the boxes are of another convention, or of other images.
    """
    sizes, turns = frames.sizes[boxes.image], frames.turns[boxes.image]
    stored = np.where((turns >= 5)[:, None], sizes[:, ::-1], sizes)  # as they were annotated
    known = (stored > 0).all(1)
    edges = stored[known][:, ::-1].astype(np.float64)  # width, height
    if not len(edges):
        return
    numbers = _written(boxes)[known]
    if not boxes.shares and abs(numbers).max() <= 1 and edges.min() > 2:
        raise InputError(
            f"{boxes.path}: no box has a number above 1, so they are shares of the image's size; "
            f"{boxes.format}'s are px: multiply them by width and height"
        )
    scale = np.tile(edges, 2) if boxes.shares else 1.0
    # bool [m] by what the numbers might mean, without what the format says: would they not fit?
    outside = {
        name: ~_fit(_read(numbers, name) * scale, edges) for name in (CORNERS, SIZES, CENTRES)
    }
    del outside[OWN[boxes.format]]
    xyxy = _read(numbers, OWN[boxes.format]) * scale
    far = ~_fit(xyxy, edges, np.maximum(2, SLACK * edges))
    if far.mean() > (SUSPECT_SHARE if far.sum() >= MANY_BOXES else 0.5):
        _refuse_other_reading(boxes, far, outside)
    partly = ((xyxy[:, :2] < edges) & (xyxy[:, 2:] > xyxy[:, :2]) & (xyxy[:, 2:] > 0)).all(1)
    _refuse_far(boxes, far & partly)


def _refuse_other_reading(
    boxes: Annotations, far: np.ndarray, outside: dict[str, np.ndarray]
) -> None:
    for name, wrong in outside.items():
        if 1 - wrong.mean() > FITTING_SHARE:
            raise InputError(
                f"{boxes.path}: {far.sum()} of {len(far)} boxes reach over the image's edge or "
                f"have no size if their numbers are {OWN[boxes.format]}, and "
                f"{wrong.sum() or 'none'} if they are {name}; {boxes.format}'s are the former: "
                "convert it"
            )


def _refuse_far(boxes: Annotations, far: np.ndarray) -> None:
    if 2 * far.sum() > len(far):
        unit = ", as shares of the image's size" if boxes.shares else " in px"
        raise InputError(
            f"{boxes.path}: {far.sum()} of {len(far)} boxes reach over the image's edge by more "
            f"than {SLACK:.0%} of its side; {boxes.format}'s are {OWN[boxes.format]}{unit}, "
            "and the images must be those that were annotated"
        )


def _written(boxes: Annotations) -> np.ndarray:
    """The numbers in the files, float64 [m, 4]."""
    low, high = boxes.xyxy[:, :2], boxes.xyxy[:, 2:]
    if OWN[boxes.format] == SIZES:
        return np.concatenate([low, high - low], axis=1)
    if OWN[boxes.format] == CENTRES:
        return np.concatenate([(low + high) / 2, high - low], axis=1)
    from_1 = float(boxes.format == "VOC")  # whose px count from 1
    return boxes.xyxy + (from_1, from_1, 0.0, 0.0)


def _read(numbers: np.ndarray, what: str) -> np.ndarray:
    """Corners of the boxes, float64 [m, 4], if the numbers are `what`."""
    place, size = numbers[:, :2], numbers[:, 2:]
    if what == CORNERS:
        return numbers
    if what == SIZES:
        return np.concatenate([place, place + size], axis=1)
    return np.concatenate([place - size / 2, place + size / 2], axis=1)


def _fit(xyxy: np.ndarray, edges: np.ndarray, slack: float | np.ndarray = 1.0) -> np.ndarray:
    """bool [m]: has a size, and lies within its image, give or take `slack` px."""
    sized = xyxy[:, 2:] > xyxy[:, :2]
    within = (xyxy[:, :2] >= -slack) & (xyxy[:, 2:] <= edges + slack)
    return np.all(sized & within, axis=1)
