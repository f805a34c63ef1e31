"""What a reader of one format (`coco.py`, `voc.py`, `yolo.py`, those of shapes) hands to
`boxes.py`. Nothing here has been clipped, turned or dropped yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from downstream.dense.outlines import Outline
from downstream.dense.shapes import NO_OBJECTS, Shapes, require_finite
from downstream.detection.data.keypoints import Keypoints
from ssld.data.source import Source


@dataclass(frozen=True)
class Annotations:
    """n images and m boxes as the files have them."""

    path: str
    format: str
    """COCO, VOC, YOLO, ...: for the report."""
    folder: str
    """Of the images."""
    names: list[str]
    """Image files relative to `folder`, distinct."""
    stated: np.ndarray
    """int64 [n, 2]: height and width that the annotations claim, UNSTATED where they do not."""
    image_ids: list[Any]
    """COCO's own, numbers or text; others' count from 1."""
    class_names: list[str]
    category_ids: list[int]
    """Each class's number in the files."""
    image: np.ndarray
    """int64 [m]: number of the image that a box is in."""
    labels: np.ndarray
    """int64 [m]: index into `class_names`."""
    xyxy: np.ndarray
    """float64 [m, 4], finite: px of the frame that `stated` has; with `shares` shares of it."""
    crowd: np.ndarray
    """bool [m]."""
    places: Callable[[int], str]
    """Where the files have a box."""
    files: list[str]
    """The files that say all this, for their hash."""
    shares: bool = False
    areas: np.ndarray | None = None
    """float64 [m] px², where the format has them."""
    keypoints: Keypoints | None = None
    """What the keypoints are, where the set has any."""
    points: np.ndarray | None = None
    """float64 [m, k, 3]: x, y in continuous px or shares, like the boxes (see `boxes.Boxes`), and
    visibility, 0, 1 or 2."""
    outlines: list[Outline] | None = None
    """Of each box, where they were asked for."""
    remarks: tuple[str, ...] = ()
    """What the report should say of the reading."""
    images: Source | None = None
    """Where the images are, if that is no folder: in the order of `names`, which are their ids.
    `stated` has the size of each, upright."""

    def where(self, j: int) -> str:
        """Box j, for messages."""
        return f"{self.places(j)} of image {self.names[self.image[j]]!r}"


def of_shapes(shapes: Shapes, masks: bool) -> Annotations:
    """The boxes around shapes, and their outlines where masks are asked for.

    Raises:
        InputError: a box is not finite.
    """
    rows, names = shapes.rows, shapes.class_names
    number = {name: i for i, name in enumerate(names)}
    kept = [j for j, name in enumerate(rows.labels) if name in number]
    none = len(rows.labels) - len(kept)

    def where(j: int) -> str:
        return f"{rows.where[kept[j]]} of image {shapes.names[rows.image[kept[j]]]!r}"

    xyxy = rows.table()[kept]
    require_finite(xyxy, ("x1", "y1", "x2", "y2"), where, "a number of px")
    return Annotations(
        path=shapes.path,
        format=shapes.format,
        folder=shapes.folder,
        names=shapes.names,
        stated=np.array(shapes.stated, np.int64).reshape(-1, 2),
        image_ids=list(range(1, len(shapes.names) + 1)),
        class_names=names,
        category_ids=list(range(len(names))),
        image=np.array(rows.image, np.int64)[kept],
        labels=np.array([number[rows.labels[j]] for j in kept], np.int64),
        xyxy=xyxy,
        crowd=np.array(rows.crowd, bool)[kept],
        places=lambda j: rows.where[kept[j]],
        files=shapes.files,
        outlines=[rows.more[j] for j in kept] if masks else None,
        remarks=(
            *shapes.remarks,
            *[f"shapes of {' or '.join(NO_OBJECTS)}, left out: {none}"] * bool(none),
        ),
    )
