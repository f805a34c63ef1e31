"""What labelling tools write that let one draw on pictures: images, and shapes with a class each.
Readers of one tool (`labelme.py`, `cvat.py`) hand it to detection, which wants the boxes, and to
segmentation, which wants the areas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from downstream.dense.outlines import FARTHEST_PX, Extent, Outline
from downstream.dense.texts import name_lines
from ssld.common.errors import InputError
from ssld.data.decode import MAX_PIXELS

UNSTATED = -1
"""Height and width of an image of which a file states none."""
LARGEST = 1e9
"""No picture has as many px a side."""
IGNORED, BACKGROUND = "__ignore__", "_background_"
NO_OBJECTS = (IGNORED, BACKGROUND)
"""labelme's names for areas that count nowhere, and for what is of no class."""
CIRCLE_POINTS = 72
"""Of the polygon that stands for a circle: its area is .1 % too small."""


@dataclass
class Rows:
    """Boxes as a reader finds them, one after the other."""

    image: list[int] = field(default_factory=list)
    """Number of the image that each is in."""
    labels: list[Any] = field(default_factory=list)
    """Names or numbers of classes, as the files have them."""
    numbers: list[Sequence[float]] = field(default_factory=list)
    """Four of each box, whatever they mean."""
    crowd: list[bool] = field(default_factory=list)
    where: list[str] = field(default_factory=list)
    """File and place in it."""
    more: list[Any] = field(default_factory=list)
    """Numbers of each one's keypoints or outline; of `Shapes` its outline."""

    def add(
        self,
        image: int,
        label: Any,
        numbers: Sequence[float],
        where: str,
        crowd: bool = False,
        more: Any = (),
    ) -> None:
        self.image.append(image)
        self.labels.append(label)
        self.numbers.append(numbers)
        self.crowd.append(crowd)
        self.where.append(where)
        self.more.append(more)

    def table(self) -> np.ndarray:
        """float64 [m, 4]."""
        return np.array(self.numbers, np.float64).reshape(-1, 4)


@dataclass(frozen=True)
class Shapes:
    """n images and the shapes on them, in px of the frame that `stated` has."""

    path: str
    """What the user gave, for messages."""
    format: str
    folder: str
    """Of the images."""
    names: list[str]
    """Image files relative to `folder`, distinct."""
    stated: list[tuple[int, int]]
    """Height and width of each, or UNSTATED."""
    class_names: list[str]
    rows: Rows
    """By image, from the lowest to the topmost. `labels` are of `class_names` or `NO_OBJECTS`;
    `numbers` the box
    around each shape, x1, y1, x2, y2; `more` its `Outline`, empty where only boxes are wanted."""
    files: list[str]
    """The files that say all this, for their hash."""
    remarks: tuple[str, ...] = ()
    """What the report should say of the reading."""


def stated_size(height: Any, width: Any) -> tuple[int, int]:
    """Height and width as a file states them, UNSTATED where they are none of a picture."""
    if type(height) is int and type(width) is int and height > 0 < width:
        if height * width <= MAX_PIXELS:
            return height, width
    return UNSTATED, UNSTATED


def require_near(points: np.ndarray, where: str) -> np.ndarray:
    """The same points, float64 [n, 2]. What is farther than any picture reaches would take minutes
    to draw.

    Raises:
        InputError: one is too far, or no number.
    """
    if not (abs(points) < FARTHEST_PX).all():
        raise InputError(f"{where}: a point is no number of px of a picture; give x, y in px")
    return points


def polygon(points: np.ndarray) -> Outline:
    """Of float64 [n, 2]."""
    return [points.ravel()]


def rectangle(xyxy: Extent) -> np.ndarray:
    """float64 [4, 2]."""
    x1, y1, x2, y2 = xyxy
    return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)], np.float64)


def ellipse(x: float, y: float, rx: float, ry: float) -> np.ndarray:
    """float64 [n, 2] of one about x, y."""
    angles = np.linspace(0, 2 * np.pi, CIRCLE_POINTS, endpoint=False)
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    """Points turned clockwise (y is down) about the middle of the box around them."""
    if not degrees:
        return points
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    middle = (points.min(0) + points.max(0)) / 2
    return (points - middle) @ np.array([[cos, sin], [-sin, cos]]) + middle


def require_finite(
    values: np.ndarray, fields: Sequence[str], where: Callable[[int], str], what: str = "a number"
) -> None:
    """Refuse NaN, infinity and what is no px, which would make the loss NaN many steps later.

    Args:
        values: float64 [m, fields].
        where: row -> file, entry and image.

    Raises:
        InputError: naming the first.
    """
    bad = np.argwhere(~(abs(values) < LARGEST))
    if len(bad):
        row, column = (int(i) for i in bad[0])
        rows = len(set(bad[:, 0].tolist()))
        more = f" (and {rows - 1} more boxes are like it)" if rows > 1 else ""
        raise InputError(
            f"{where(row)}: {fields[column]} is {values[row, column]}{more}; give {what}"
        )


def names_in_use(file: Path | None, rows: Rows) -> list[str]:
    """The class names that a file lists, one a line; without one the sorted names that occur.

    Raises:
        InputError: a name in use is not in the file.
    """
    if file is None:
        return sorted(set(rows.labels))
    names = name_lines(file)
    known = set(names)
    for where, name in zip(rows.where, rows.labels, strict=True):
        if name not in known:
            raise InputError(f"{where}: name is {name!r}, which {file} does not have; add it")
    return names


def counted(what: str, counts: dict[str, int]) -> list[str]:
    """A remark on what was left out, `what: 3 line, 1 point`; none where that is nothing."""
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    return [f"{what}: {listed}"] * bool(counts)
