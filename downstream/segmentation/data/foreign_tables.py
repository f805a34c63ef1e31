"""Class tables as other tools write them.

class_names.txt   labelme's examples/semantic_segmentation/labelme2voc.py: a name a line, whose ids
                  are 0, 1, ...; a first line `__ignore__` is id -1, which is 255 in a mask.
labelmap.txt      CVAT's "Segmentation mask" (datumaro's VOC format): `name:r,g,b:parts:actions` a
                  line, comments after #. VOC's border colour is ignored.
class_dict.csv    of CamVid and DeepGlobe on Kaggle: `name,r,g,b` and a class a line.
label_colors.txt  CamVid's own: `r g b` and the name a line.
_classes.csv      Roboflow's "Semantic Segmentation Masks": `Pixel Value, Class` and a class a line.

Masks of those with colours are told by them; grey ones have the number of the line, from 0. Classes
named `Void` or `Unlabel(l)ed` there are ignored: that is what they say.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from typing import Any

from downstream.dense.texts import shown
from ssld.common.errors import InputError

IGNORED_NAME = "__ignore__"
NO_CLASS = ("void", "unlabelled", "unlabeled", IGNORED_NAME)
BORDER = "224,224,192"
"""VOC's colour of id 255 (VOCcolormap.m)."""
NAMES, LABELMAP = "class_names.txt", "labelmap.txt"


def _names(text: str, _: str) -> list[dict[str, Any]]:
    """A name a line, whose ids are 0, 1, ...; `__ignore__` is 255."""
    names = [line.strip() for line in text.splitlines() if line.strip()]
    ignored = [{"id": 255, "name": IGNORED_NAME, "ignore": True}] if IGNORED_NAME in names else []
    kept = [name for name in names if name != IGNORED_NAME]
    return [{"id": i, "name": name} for i, name in enumerate(kept)] + ignored


def _labelmap(text: str, path: str) -> list[dict[str, Any]]:
    """`name:r,g,b:parts:actions` a line, comments after #."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        *names, colour, _, _ = (
            line.split(":") if line.count(":") > 2 else [*line.split(":", 1), "", ""]
        )
        name, colour = ":".join(names).strip(), colour.strip().rstrip(":").strip()
        if not name or not re.fullmatch(r"(\d+\s*,\s*\d+\s*,\s*\d+)?", colour):
            raise InputError(
                f"{path}: line {number} is {shown(line)}; give name:red,green,blue:parts:actions"
            )
        rows.append({"id": len(rows), "name": name, **({"colour": colour} if colour else {})})
    taken = {re.sub(r"\s", "", row.get("colour", "")) for row in rows}
    if BORDER not in taken:
        rows.append({"id": 255, "name": IGNORED_NAME, "colour": BORDER, "ignore": True})
    return rows


def _class_dict(text: str, path: str) -> list[dict[str, Any]]:
    """`name,r,g,b` and a class a line."""
    head, *lines = _csv(text, path)
    keys = [key.lower() for key in head]
    if not {"name", "r", "g", "b"} <= set(keys):
        raise InputError(f"{path}: the first line is {shown(','.join(head))}; give name,r,g,b")
    rows = [dict(zip(keys, line, strict=False)) for line in lines]
    for i, row in enumerate(rows):
        if not {"name", "r", "g", "b"} <= row.keys():
            raise InputError(f"{path}: class {i + 1} is {shown(lines[i])}; give name,r,g,b")
    return [_coloured(i, x["name"], f"{x['r']},{x['g']},{x['b']}") for i, x in enumerate(rows)]


def _label_colors(text: str, path: str) -> list[dict[str, Any]]:
    """`64 128 64<tab>Animal` a line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = [re.fullmatch(r"(\d+)\s+(\d+)\s+(\d+)\s+(.+)", line) for line in lines]
    for line, parts in zip(lines, found, strict=True):
        if parts is None:
            raise InputError(f"{path}: {shown(line)} is no class; give red green blue name")
    known = [parts for parts in found if parts]
    return [_coloured(i, x[4], f"{x[1]},{x[2]},{x[3]}") for i, x in enumerate(known)]


def _coloured(i: int, name: str, colour: str) -> dict[str, Any]:
    return {"id": i, "name": name, "colour": colour, "ignore": name.lower() in NO_CLASS}


def _pixel_values(text: str, path: str) -> list[dict[str, Any]]:
    """`Pixel Value, Class` and a class a line."""
    head, *lines = _csv(text, path)
    if [key.lower() for key in head] != ["pixel value", "class"]:
        raise InputError(
            f"{path}: the first line is {shown(','.join(head))}; give Pixel Value, Class"
        )
    for i, line in enumerate(lines):
        if len(line) != 2:
            raise InputError(f"{path}: class {i + 1} is {shown(line)}; give a value and a name")
    return [{"id": x, "name": name, "ignore": name.lower() in NO_CLASS} for x, name in lines]


def _csv(text: str, path: str) -> list[list[str]]:
    try:
        rows = [[x.strip() for x in row] for row in csv.reader(io.StringIO(text)) if any(row)]
    except csv.Error as error:
        raise InputError(f"{path}: not CSV ({error}); mend it") from error
    if not rows:
        raise InputError(f"{path}: is empty; give the classes")
    return rows


FOREIGN: dict[str, Callable[[str, str], list[dict[str, Any]]]] = {
    NAMES: _names,
    LABELMAP: _labelmap,
    "class_dict.csv": _class_dict,
    "label_colors.txt": _label_colors,
    "_classes.csv": _pixel_values,
}
"""(text, path) -> rows as of classes.json, by the file's name."""
BY_COLOUR = (LABELMAP, "class_dict.csv", "label_colors.txt")
"""Whose masks are told by colour, also where a PNG has a palette."""
