"""YOLO's layout: `images/<split>/x.jpg` with `labels/<split>/x.txt`, or `<split>/images` with
`<split>/labels`, or without splits; `data.yaml::<split>`; lists of images; names in `data.yaml`,
`classes.txt` or `obj.names` (all in `yolo_layouts.py`).

A line is `class x y width height`: centre and size as shares of the image (darknet; ultralytics'
"Detect" format), or `class x y x y x y ...`, an outline of three points or more, whose box is
taken. In a pose set (`kpt_shape`) x y, or x y visibility, of each keypoint follow the box; of two
numbers, 0 0 and negative ones are none. Labels speak of the upright image, as the tools that write
them (ultralytics `verify_image_label`, which turns the size by EXIF) see it. An image without a
label file is a negative, as there; a label file without an image is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from downstream.dense.outlines import Outline, around
from downstream.dense.pictures import common_folder
from downstream.dense.shapes import UNSTATED, Rows, require_finite
from downstream.dense.texts import read_text, shown
from downstream.detection.data.annotations import Annotations
from downstream.detection.data.keypoints import require_visibilities
from downstream.detection.data.yolo_layouts import Layout, find_layout
from ssld.common.errors import InputError

FIELDS = ("x", "y", "width", "height")
PX = 1.5
"""A share above this is no rounding: it is px."""


def read_yolo(path: str, root: Path, split: str | None, masks: bool = False) -> Annotations:
    """Read the labels of a split.

    Args:
        path: what the user gave, for messages.
        root: a folder, or a `data.yaml`.
        masks: keep the outlines.

    Raises:
        InputError: no names, a label file without image, a line that is not a class and 4 shares.
    """
    layout = find_layout(path, root, split)
    folder, names = common_folder(layout.images)
    rows = Rows()
    outlines = 0
    for number, label in enumerate(layout.labels):
        if label is not None:
            outlines += _read_labels(Path(label), number, layout, rows)
    shares = rows.table()

    def where(j: int) -> str:
        return f"{rows.where[j]} of image {names[rows.image[j]]!r}"

    _check_shares(shares, where)
    centres, halves = shares[:, :2], shares[:, 2:] / 2
    return Annotations(
        path=path,
        format="YOLO",
        folder=folder,
        names=names,
        stated=np.full((len(names), 2), UNSTATED, np.int64),
        image_ids=list(range(1, len(names) + 1)),
        class_names=layout.class_names,
        category_ids=list(range(len(layout.class_names))),
        image=np.array(rows.image, np.int64),
        labels=np.array(rows.labels, np.int64),
        xyxy=np.concatenate([centres - halves, centres + halves], axis=1),
        crowd=np.array(rows.crowd, bool),
        places=rows.where.__getitem__,
        files=[*layout.files, *filter(None, layout.labels)],
        shares=True,
        keypoints=layout.keypoints,
        points=_points(layout, rows, where),
        outlines=_outlines(layout, rows) if masks else None,
        remarks=_remarks(layout, outlines),
    )


def _points(layout: Layout, rows: Rows, where: Callable[[int], str]) -> np.ndarray | None:
    """float64 [m, k, 3] in shares; None where it is no pose set."""
    if layout.keypoints is None:
        return None
    count = len(layout.keypoints.names)
    none = [0.0] * (count * layout.dimensions)
    table = np.array([more or none for more in rows.more], np.float64).reshape(-1, len(none))
    require_finite(table, [f"keypoint number {i + 1}" for i in range(len(none))], where)
    points = table.reshape(len(table), count, layout.dimensions)
    if layout.dimensions == 2:
        labeled = (points >= 0).all(-1, keepdims=True) & (points > 0).any(-1, keepdims=True)
        return np.concatenate([points, 2.0 * labeled], axis=-1)
    require_visibilities(points[..., 2], where)
    return points


def _outlines(layout: Layout, rows: Rows) -> list[Outline]:
    pose = layout.keypoints is not None
    return [[np.array(more)] if more and not pose else [] for more in rows.more]


def _remarks(layout: Layout, outlines: int) -> tuple[str, ...]:
    missing, images = layout.labels.count(None), len(layout.labels)
    remarks = [
        f"images without a label file, taken as without boxes: {missing} of {images}"
    ] * bool(missing)
    remarks += [f"boxes taken around outlines: {outlines}"] * bool(outlines)
    return (*remarks, *layout.remarks)


def _read_labels(file: Path, image: int, layout: Layout, rows: Rows) -> int:
    """Add a file's boxes to `rows`; returns how many are taken around outlines.

    Raises:
        InputError: a line is none, or of no class.
    """
    outlines, classes = 0, len(layout.class_names)
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        parts = line.split()
        if not parts:
            continue
        where = f"{file}: line {number}"
        try:
            values = [float(part) for part in parts]
        except ValueError:
            values = []
        numbers = len(layout.keypoints.names) * layout.dimensions if layout.keypoints else 0
        box = _box(values, numbers)
        if box is None:
            hint = "; a sixth is a score, which annotations do not have" * (len(values) == 6)
            raise InputError(
                f"{where} is {shown(line.strip()[:60])}; give class x y width height, five "
                f"numbers, or a class and the x y of three points or more{hint}"
            )
        if values[0] not in range(classes):
            raise InputError(
                f"{where}: class is {parts[0][:40]}; the {classes} classes have the numbers 0 to "
                f"{classes - 1}"
            )
        outlines += len(values) != 5 and not numbers
        more = [] if len(values) == 5 else values[5:] if numbers else values[1:]
        rows.add(image, int(values[0]), box, where, more=more)
    return outlines


def _box(values: list[float], keypoints: int) -> list[float] | None:
    """x, y, width, height of a line's numbers, the first of which is the class; None where they
    are no box. Of an outline it is the box around it."""
    if len(values) == 5 or (keypoints and len(values) == 5 + keypoints):
        return values[1:5]
    if len(values) >= 7 and len(values) % 2 and not keypoints:
        x1, y1, x2, y2 = around(np.array(values[1:]))
        return [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
    return None


def _check_shares(boxes: np.ndarray, where: Callable[[int], str]) -> None:
    require_finite(boxes, FIELDS, where, "a share of the image's size")
    over = np.argwhere(boxes > PX)
    if len(over):
        row, column = (int(i) for i in over[0])
        raise InputError(
            f"{where(row)}: {FIELDS[column]} is {boxes[row, column]:g}; give shares of the image's "
            "size between 0 and 1, not px"
        )
