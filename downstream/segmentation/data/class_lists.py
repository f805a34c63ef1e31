"""Class tables as labelme and CVAT write them, as rows of `class_table.py`.

class_names.txt   labelme's examples/semantic_segmentation/labelme2voc.py: a name a line, whose ids
                  are 0, 1, ...; a first line `__ignore__` is id -1, which is 255 in a mask.
labelmap.txt      CVAT's "Segmentation mask" (datumaro's VOC format): `name:r,g,b:parts:actions` a
                  line, comments after #. Masks are told by colour; grey ones have the number of
                  the line. VOC's border colour is ignored.
"""

from __future__ import annotations

import re
from typing import Any

from downstream.dense.texts import shown
from ssld.common.errors import InputError

NAMES, LABELMAP = "class_names.txt", "labelmap.txt"
IGNORED_NAME = "__ignore__"
BORDER = "224,224,192"
"""VOC's colour of id 255 (VOCcolormap.m)."""


def rows_of_names(text: str) -> list[dict[str, Any]]:
    """Of class_names.txt."""
    names = [line.strip() for line in text.splitlines() if line.strip()]
    ignored = [{"id": 255, "name": IGNORED_NAME, "ignore": True}] if IGNORED_NAME in names else []
    kept = [name for name in names if name != IGNORED_NAME]
    return [{"id": i, "name": name} for i, name in enumerate(kept)] + ignored


def rows_of_labelmap(text: str, path: str) -> list[dict[str, Any]]:
    """Of labelmap.txt.

    Raises:
        InputError: a line is none.
    """
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
