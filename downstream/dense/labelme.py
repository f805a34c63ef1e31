"""labelme's files: a JSON for each picture, beside it or where `imagePath` leads (wkentaro/labelme
`label_file.py`; X-AnyLabeling writes the same).

A shape is a polygon (also where a file of version 3 names no type), a rectangle of two corners or
four, a circle of its centre and a point of its edge, or a mask, a PNG in base64 whose first and
last pixel are given (version 5). Shapes of one label and one `group_id` are one object, as in
labelme's own converters. Points, lines and the like have no area: they are left out and counted.
Later shapes lie on earlier ones (`shape.py: shapes_to_label`). Pictures without a file are
unlabelled, as labelme saves none for a picture that nobody drew on.

`imageData`, the picture itself in base64, is not looked at: the picture must be there as a file.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import struct
import warnings
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from downstream.dense.outlines import Outline, around, encode, placed
from downstream.dense.pictures import common_folder, images_by_stem, posix, shortened
from downstream.dense.shapes import (
    NO_OBJECTS,
    UNSTATED,
    Rows,
    Shapes,
    counted,
    ellipse,
    names_in_use,
    polygon,
    rectangle,
    require_near,
    stated_size,
)
from downstream.dense.texts import decode_text, require_flag, require_name, short_line, shown
from ssld.common.errors import InputError
from ssld.data.decode import MAX_PIXELS

LISTS = ("labels.txt", "classes.txt", "class_names.txt")
SHAPES = re.compile(rb'"shapes"\s*:')
DAMAGED = (OSError, ValueError, TypeError, SyntaxError, IndexError, struct.error, zlib.error,
           Image.DecompressionBombError)  # fmt: skip
"""What Pillow and base64 raise of a mask that is none."""
HEAD = 2**16
"""Bytes within which the shapes of a file begin: `version`, `flags` and `shapes` come first."""


def has_shapes(file: Path) -> bool:
    """Whether a JSON is one of labelme's."""
    try:
        with open(file, "rb") as opened:
            return _has_shapes(opened.read(HEAD))
    except OSError:
        return False


def _has_shapes(data: bytes) -> bool:
    return SHAPES.search(data[:HEAD].replace(b"\0", b"")) is not None  # without UTF-16's zeros


def read_labelme(path: str, folder: Path, masks: bool = False) -> Shapes:
    """
    Args:
        path: what the user gave, for messages.
        folder: with the JSON files.
        masks: keep the outlines.

    Raises:
        InputError: a file that cannot be read, a picture that is missing or that two files are of,
            a shape that is none; names file and shape.
    """
    every = sorted(file for file in folder.glob("*.json") if not file.name.startswith("."))
    beside = images_by_stem(folder)
    rows, files, pictures, stated = Rows(), [], [], []
    owner: dict[str, Path] = {}
    left: Counter[str] = Counter()
    for file in every:
        content = _content(file)
        if content is None:
            continue
        files.append(file)
        picture = _picture(file, content, beside)
        if owner.setdefault(picture, file) != file:
            raise InputError(
                f"{file}: is of {picture}, as {owner[picture]} is; keep one of the two files"
            )
        pictures.append(picture)
        stated.append(stated_size(content.get("imageHeight"), content.get("imageWidth")))
        _add_shapes(file, len(files) - 1, content, stated[-1], rows, left, masks)
    root, names_in_root = common_folder(pictures)
    table = next((place / name for place in (folder, folder.parent) for name in LISTS
                  if (place / name).is_file()), None)  # fmt: skip
    names = [name for name in names_in_use(table, rows) if name not in NO_OBJECTS]
    others = sum(map(len, beside.values())) - sum(Path(x).parent == folder for x in pictures)
    return Shapes(
        path=path,
        format="labelme",
        folder=root,
        names=names_in_root,
        stated=stated,
        class_names=names,
        rows=rows,
        files=[*map(str, files), *([str(table)] if table else [])],
        remarks=(
            *[f"pictures without a JSON file, left out: {others}"] * bool(others),
            *[f"JSON files that are not labelme's, left out: {len(every) - len(files)}"]
            * (len(files) < len(every)),
            *counted("shapes that have no area, left out", left),
        ),
    )


def _content(file: Path) -> dict[str, Any] | None:
    """None of a file that is not labelme's."""
    try:
        data = file.read_bytes()
        content = json.loads(decode_text(data)[0]) if _has_shapes(data) else None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read as JSON ({short_line(str(error))})") from error
    if content is None:
        return None
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise InputError(f"{file}: shapes is {shown(shapes)}; give labelme's list of shapes")
    return content


def _picture(file: Path, content: dict[str, Any], beside: dict[str, list[str]]) -> str:
    """Where `imagePath` leads from the file, or what is left of it without the folders of another
    machine; else the one picture that is named as the file is."""
    named = content.get("imagePath")
    if isinstance(named, str) and named.strip() and "\0" not in named:
        for name in shortened(posix(named.strip())):
            place = os.path.normpath(os.path.join(file.parent, name))
            if os.path.isfile(place):
                return place
    alike = beside.get(file.stem, [])
    if len(alike) == 1:
        return str(file.parent / alike[0])
    embedded = "; the file has it only embedded (imageData)" * bool(content.get("imageData"))
    raise InputError(
        f"{file}: imagePath is {shown(named)}, and there is no such picture beside it{embedded}; "
        "put the picture there"
    )


def _add_shapes(
    file: Path,
    image: int,
    content: dict[str, Any],
    size: tuple[int, int],
    rows: Rows,
    left: Counter[str],
    masks: bool,
) -> None:
    objects: dict[Any, int] = {}
    for i, shape in enumerate(content["shapes"]):
        where = f"{file}: shapes[{i}]"
        name = require_name(shape.get("label"), f"{where}.label").strip()
        if not name:
            raise InputError(f"{where}.label is empty; name the class")
        kind = shape.get("shape_type") or "polygon"
        points = _points(shape, where)
        if kind == "mask":
            box, outline = _mask(shape, points, size, where, masks)
        else:
            area = _area(str(kind), points)
            if area is None:
                left[short_line(str(kind), 40)] += 1
                continue
            area = require_near(area, f"{where}.points")
            box, outline = around(area.ravel()), polygon(area)
        group = shape.get("group_id")
        crowd = require_flag(shape.get("difficult"), f"{where}.difficult")
        same = objects.get((name, group)) if type(group) in (int, str) else None
        if same is None:
            objects[name, group] = len(rows.image)
            rows.add(image, name, box, where, crowd, outline if masks else [])
        else:
            _join(rows, same, box, outline if masks else [])


def _join(rows: Rows, j: int, box: list[float], outline: Outline) -> None:
    """A further part of an object."""
    low, high = np.minimum(rows.numbers[j], box)[:2], np.maximum(rows.numbers[j], box)[2:]
    rows.numbers[j] = [*low.tolist(), *high.tolist()]
    if isinstance(outline, list) and isinstance(rows.more[j], list):
        rows.more[j] = [*rows.more[j], *outline]
    else:
        raise InputError(
            f"{rows.where[j]}: has the label and group_id of a shape of type mask; give each its "
            "own group_id"
        )


def _points(shape: dict[str, Any], where: str) -> np.ndarray:
    """float64 [n, 2]."""
    points = shape.get("points")
    try:
        table = np.array(points, np.float64)
    except (TypeError, ValueError, OverflowError):
        table = np.zeros(0)
    if not isinstance(points, list) or table.shape != (len(points), 2) or not len(points):
        raise InputError(f"{where}.points is {shown(points)}; give a list of [x, y] in px")
    return require_near(table, f"{where}.points")


def _area(kind: str, points: np.ndarray) -> np.ndarray | None:
    """float64 [n, 2]: the polygon that a shape is; None where it has no area."""
    if kind == "circle" and len(points) == 2:
        (x, y), edge = points[0].tolist(), points[1].tolist()
        radius = math.dist((x, y), edge)
        return ellipse(x, y, radius, radius)
    if kind == "rectangle" and len(points) >= 2:
        return rectangle(around(points.ravel()))
    if kind in ("polygon", "rotation") and len(points) >= 3:
        return points
    return None


def _mask(
    shape: dict[str, Any], points: np.ndarray, size: tuple[int, int], where: str, masks: bool
) -> tuple[list[float], Outline]:
    """The box around a mask's pixels, and the mask in the whole picture."""
    try:
        data = base64.b64decode(shape.get("mask") or "", validate=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=("PNG",))
        if image.width * image.height > MAX_PIXELS:
            raise ValueError("too large")
        pixels = np.asarray(image.convert("L")) > 0
    except DAMAGED as error:
        raise InputError(
            f"{where}.mask: is no PNG in base64 ({short_line(str(error), 80)}); draw it again"
        ) from error
    ys, xs = np.nonzero(pixels)
    if not len(ys):
        raise InputError(f"{where}.mask: has no pixel; take the shape out")
    left, top = np.floor(points.min(0)).astype(int).tolist()
    box = [left + int(xs.min()), top + int(ys.min()), left + int(xs.max()) + 1,
           top + int(ys.max()) + 1]  # fmt: skip
    if not masks:
        return [float(x) for x in box], []
    if size[0] == UNSTATED:
        raise InputError(f"{where}: a mask needs imageHeight and imageWidth of its file; add them")
    return [float(x) for x in box], encode(placed(pixels, left, top, size))
