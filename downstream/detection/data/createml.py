"""Create ML's JSON: a list of images, each with boxes of a label, of which x and y are the centre
in px (Apple, "Building an object detector data source"). labelImg writes a file for each picture,
beside it (`create_ml_io.py`), Roboflow one for all, `_annotations.createml.json`.

The classes are the sorted names that occur, or the lines of `classes.txt` beside the files.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from downstream.dense.coco_json import find_images
from downstream.dense.pictures import posix
from downstream.dense.shapes import UNSTATED, Rows, Shapes, names_in_use
from downstream.dense.texts import (
    decode_text,
    require_name,
    require_unique,
    short_line,
    shown,
    writable,
)
from ssld.common.errors import InputError

HEAD = 2**12
CLASSES = "classes.txt"


def is_createml(file: Path) -> bool:
    """Whether a JSON is a list of objects with an image."""
    try:
        with open(file, "rb") as opened:
            head = opened.read(HEAD).replace(b"\0", b"")
    except OSError:
        return False
    return head.lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n").startswith(b"[") and b'"image"' in head


def read_createml(path: str, files: list[Path], images: str | None = None) -> Shapes:
    """
    Args:
        path: what the user gave, for messages.
        files: one or several, whose images are those of all.
        images: folder of the images; by default the one in which they are found.

    Raises:
        InputError: a file that cannot be read, an image that is missing or that occurs twice, a
            box without four numbers; names file, image and box.
    """
    rows, names, places = Rows(), [], []
    for file in files:
        for i, entry in enumerate(_entries(file)):
            where = f"{file}: [{i}]"
            name = entry.get("image", entry.get("imagefilename"))
            if not isinstance(name, str) or not name.strip() or not writable(name):
                raise InputError(f"{where}.image is {shown(name)}; give the name of the picture")
            _add_boxes(f"{where}.annotations", entry, len(names), rows)
            names.append(posix(name))
            places.append(f"{where}.image")
    require_unique(names, places.__getitem__)
    folder, names = find_images(str(files[0]), names, images, places.__getitem__)
    table = Path(files[0]).parent / CLASSES
    return Shapes(
        path=path,
        format="Create ML",
        folder=folder,
        names=[os.path.normpath(name) for name in names],
        stated=[(UNSTATED, UNSTATED)] * len(names),
        class_names=names_in_use(table if table.is_file() else None, rows),
        rows=rows,
        files=[*map(str, files), *([str(table)] if table.is_file() else [])],
    )


def _entries(file: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(decode_text(file.read_bytes())[0])
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read as JSON ({short_line(str(error))})") from error
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise InputError(f"{file}: is no list of images; give Create ML's, or COCO's json")
    if not content:
        raise InputError(f"{file}: the list of images is empty; give a file that has some")
    return content


def _add_boxes(where: str, entry: dict[str, Any], image: int, rows: Rows) -> None:
    boxes = entry.get("annotations", entry.get("annotation"))
    if not isinstance(boxes, list) or not all(isinstance(box, dict) for box in boxes):
        raise InputError(f"{where} is {shown(boxes)}; give a list of boxes")
    for j, box in enumerate(boxes):
        place = f"{where}[{j}]"
        name = require_name(box.get("label"), f"{place}.label").strip()
        values = box.get("coordinates")
        values = values if isinstance(values, dict) else {}
        numbers = [values.get(key) for key in ("x", "y", "width", "height")]
        if not name or not all(type(value) in (int, float) for value in numbers):
            raise InputError(
                f"{place} is {shown(box)}; give a label, and coordinates of x, y (the centre), "
                "width and height in px"
            )
        x, y, width, height = np.array(numbers, np.float64).tolist()
        rows.add(image, name, [x - width / 2, y - height / 2, x + width / 2, y + height / 2], place)
