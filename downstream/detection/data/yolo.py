"""YOLO's layout: `images/<split>/x.jpg` with `labels/<split>/x.txt`, or `<split>/images` with
`<split>/labels`, or without splits; `data.yaml::<split>`; lists of images (`yolo_layouts.py`).
Names in `data.yaml`, `classes.txt` or `obj.names` (`yolo_names.py`).

A line is `class x y width height`: centre and size as shares of the image (darknet; ultralytics'
"Detect" format), or `class x y x y x y ...`, an outline of three points or more, whose box is
taken. Labels speak of the upright image, as the tools that write them (ultralytics
`verify_image_label`, which turns the size by EXIF) see it. An image without a label file is a
negative, as there; a label file without an image is an error.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from downstream.dense.texts import read_text, shown
from downstream.detection.data.annotations import UNSTATED, Annotations, require_finite
from downstream.detection.data.outlines import around
from downstream.detection.data.yolo_layouts import find_layout
from ssld.common.errors import InputError

FIELDS = ("x", "y", "width", "height")
PX = 1.5
"""A share above this is no rounding: it is px."""


def read_yolo(path: str, root: Path, split: str | None) -> Annotations:
    """Read the labels of a split.

    Args:
        path: what the user gave, for messages.
        root: a folder, or a `data.yaml`.

    Raises:
        InputError: no names, a label file without image, a line that is not a class and 4 shares.
    """
    layout = find_layout(path, root, split)
    class_names = layout.class_names
    folder = os.path.commonpath([os.path.dirname(image) for image in layout.images])
    names = [os.path.relpath(image, folder) for image in layout.images]
    lines = _Lines(layout.keypoints, len(class_names))
    for number, label in enumerate(layout.labels):
        if label is not None:
            lines.read(Path(label), number)
    table = np.array(lines.rows, np.float64).reshape(-1, 5)
    boxes = table[:, 1:]
    _check_shares(boxes, lines.where, [names[i] for i in lines.image])
    return Annotations(
        path=path,
        format="YOLO",
        folder=folder,
        names=names,
        stated=np.full((len(names), 2), UNSTATED, np.int64),
        image_ids=list(range(1, len(names) + 1)),
        class_names=class_names,
        category_ids=list(range(len(class_names))),
        image=np.array(lines.image, np.int64),
        labels=table[:, 0].astype(np.int64),
        xyxy=np.concatenate(
            [boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1
        ),
        crowd=np.zeros(len(table), bool),
        places=lines.where.__getitem__,
        files=[*layout.files, *(label for label in layout.labels if label is not None)],
        shares=True,
        remarks=(*layout.remarks, *_remarks(layout.labels, lines)),
    )


def _remarks(labels: list[str | None], lines: _Lines) -> list[str]:
    unlabeled = labels.count(None)
    said = [
        f"images without a label file, taken as without boxes: {unlabeled} of {len(labels)}"
    ] * bool(unlabeled)
    said += [f"boxes taken around outlines: {lines.outlines}"] * bool(lines.outlines)
    said += ["keypoints are not read"] * bool(lines.keypoints)
    return said


class _Lines:
    """Boxes as they are read.

    Args:
        keypoints: numbers behind each box.
        classes: how many there are.
    """

    def __init__(self, keypoints: int, classes: int) -> None:
        self.keypoints, self.classes = keypoints, classes
        self.rows: list[list[float]] = []
        """class, x, y, width, height."""
        self.image: list[int] = []
        self.where: list[str] = []
        self.outlines = 0

    def read(self, file: Path, image: int) -> None:
        """Append a file's boxes.

        Raises:
            InputError: a line is none, or of no class.
        """
        for number, line in enumerate(read_text(file).splitlines(), start=1):
            parts = line.split()
            if not parts:
                continue
            where = f"{file}: line {number}"
            try:
                row = [float(part) for part in parts]
            except ValueError:
                row = []
            row = self._box(row, line, where)
            if row[0] not in range(self.classes):
                raise InputError(
                    f"{where}: class is {parts[0][:40]}; the {self.classes} classes have the "
                    f"numbers 0 to {self.classes - 1}"
                )
            self.rows.append(row)
            self.image.append(image)
            self.where.append(where)

    def _box(self, row: list[float], line: str, where: str) -> list[float]:
        """class, x, y, width, height of a line's numbers."""
        if len(row) == 5:
            return row
        if self.keypoints and len(row) == 5 + self.keypoints:
            return row[:5]
        if len(row) >= 7 and len(row) % 2 and not self.keypoints:
            x1, y1, x2, y2 = around(np.array(row[1:]))
            self.outlines += 1
            return [row[0], (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
        hint = "; a sixth is a score, which annotations do not have" if len(row) == 6 else ""
        raise InputError(
            f"{where} is {shown(line.strip()[:60])}; give class x y width height, five numbers, or "
            f"a class and the x y of three points or more{hint}"
        )


def _check_shares(boxes: np.ndarray, where: list[str], names: list[str]) -> None:
    def place(j: int) -> str:
        return f"{where[j]} of image {names[j]!r}"

    require_finite(boxes, FIELDS, place, "a share of the image's size")
    over = np.argwhere(boxes > PX)
    if len(over):
        row, column = (int(i) for i in over[0])
        raise InputError(
            f"{place(row)}: {FIELDS[column]} is {boxes[row, column]:g}; give shares of the image's "
            "size between 0 and 1, not px"
        )
