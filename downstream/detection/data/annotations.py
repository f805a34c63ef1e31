"""What a reader of one format (`coco.py`, `voc.py`, `yolo.py`) hands to `boxes.py`, and the checks
that they share. Nothing here has been clipped, turned or dropped yet."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from downstream.dense.texts import shown, writable
from downstream.detection.data.keypoints import Keypoints
from downstream.detection.data.outlines import Outline
from ssld.common.errors import InputError
from ssld.data.folder import EXTENSIONS
from ssld.data.source import Source

UNSTATED = -1
"""In `Annotations.stated`."""
LARGEST = 1e9
"""No picture has as many px a side."""


@dataclass(frozen=True)
class Annotations:
    """n images and m boxes as the files have them."""

    path: str
    format: str
    """COCO, VOC or YOLO."""
    folder: str
    """Of the images."""
    names: list[str]
    """Image files relative to `folder`, distinct."""
    stated: np.ndarray
    """int64 [n, 2]: height and width that the annotations claim, UNSTATED where they do not."""
    image_ids: list[int]
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
    more: list[Sequence[float]] = field(default_factory=list)
    """Numbers of each one's keypoints, or outline."""

    def add(
        self,
        image: int,
        label: Any,
        numbers: Sequence[float],
        where: str,
        crowd: bool = False,
        more: Sequence[float] = (),
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


def missing_from(folder: str, names: Sequence[str]) -> list[int]:
    """Which of `names` are no files in `folder`: one listing of each folder, not a stat a file."""
    by_folder: defaultdict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        by_folder[os.path.dirname(name)].append(i)
    missing: list[int] = []
    for subfolder, members in by_folder.items():
        try:
            present = set(os.listdir(os.path.join(folder, subfolder)))
        except OSError:
            present = set()
        missing += [i for i in members if os.path.basename(names[i]) not in present]
    return sorted(missing)


def images_by_stem(folder: Path) -> dict[str, list[str]]:
    """Image files in a folder, by name without extension.

    Raises:
        InputError: it cannot be listed.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"{folder}: the folder of images cannot be listed ({error})") from error
    by_stem: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        stem, ending = os.path.splitext(name)
        if not name.startswith(".") and ending.lower() in EXTENSIONS:
            if not writable(name):
                raise InputError(f"{folder}: the name {shown(name)} is not UTF-8; rename the file")
            by_stem[stem].append(name)
    return dict(by_stem)
