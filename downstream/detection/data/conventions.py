"""Boxes that are written in another convention than their format's: corners where sizes belong,
shares where px do. Elsewhere that gives an average precision of about 0 and no message.

A set is refused where its boxes do not lie in their images, but all of them do if they are read in
another of the usual ways; and where most of them reach far over the edge in every reading. Boxes
are held against the sizes of the images' own files, so a set that states none is judged, too.
"""

from __future__ import annotations

import numpy as np

from downstream.detection.data.annotations import Annotations
from downstream.detection.data.frames import Frames
from ssld.common.errors import InputError

CORNERS = "x1, y1, x2, y2"
SIZES = "x, y, width, height"
CENTRES = "centre x, centre y, width, height"
OWN = {"COCO": SIZES, "VOC": CORNERS, "YOLO": CENTRES}
"""What the four numbers of each format are."""
MANY_BOXES, SUSPECT_SHARE = 10, 0.05
"""Boxes far outside from which on this share of all is enough; below, it takes more than half."""
FITTING_SHARE = 0.99
"""Of the boxes, which lie in their images in the reading that was meant."""
SLACK = 0.05
"""Of a side, or 2 px: what a box may reach over the edge by a hasty hand."""


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
    if boxes.format == "COCO":
        return np.concatenate([low, high - low], axis=1)
    if boxes.format == "YOLO":
        return np.concatenate([(low + high) / 2, high - low], axis=1)
    return boxes.xyxy + (1.0, 1.0, 0.0, 0.0)  # VOC counts px from 1


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
