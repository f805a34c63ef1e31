"""What the ids or colours of masks mean: a table of id, name and colour beside the masks.

`classes.json` and `classes.yaml` hold a list of rows (or of names, whose ids are 0, 1, ...), or a
mapping of `classes` to that list and of `ignore` to an id or a list of ids; `classes.csv` has a
heading and a row a line:

    {"classes": [{"id": 0, "name": "sky", "colour": "#808080"}, ...], "ignore": [11, 255]}

    id,name,colour,ignore
    0,sky,#808080,
    11,void,#000000,true

Without one of these, what others write (`foreign_tables.py`): class_names.txt, labelmap.txt,
class_dict.csv, label_colors.txt, _classes.csv.

A colour is `#rrggbb` or three numbers. Rows with `ignore` are no classes: their pixels count
nowhere. Where a table says nothing about ignoring, 255 is ignored, as VOC and Cityscapes have it
(and `preflight.py` refuses masks in which it seems to be a class). Names in YAML are text:
`no` is no, not False. Every id (or colour) in a mask must have a row or be ignored.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from downstream.dense.texts import read_text, require_flag, require_name, short_line, shown
from downstream.segmentation.data.foreign_tables import BY_COLOUR, FOREIGN, LABELMAP
from ssld.common.errors import InputError

FILES = ("classes.json", "classes.yaml", "classes.yml", "classes.csv", *FOREIGN)
IGNORE = 255
"""In every mask that is handed out: a pixel that counts nowhere."""
MAX_CLASSES = 254
"""Class numbers share a byte with IGNORE and the mark of an id that no class has."""

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Row:
    """One id of masks."""

    id: int
    name: str
    colour: Colour | None = None
    ignore: bool = False


@dataclass(frozen=True)
class ClassTable:
    """Rows in the order of class numbers, and ids without a name that are ignored."""

    rows: tuple[Row, ...]
    where: str
    """The file, for messages."""
    ignored_ids: tuple[int, ...] = ()
    silent: bool = False
    """Whether the file says nothing about ignoring, so that IGNORE is ignored by default."""
    by_colour: bool = False
    """Whether the colours of a palette PNG count, not its indices."""
    assumed: str | None = None
    """Of a table that no file states: a pattern of the image names in the set that it is of."""

    def __post_init__(self) -> None:
        _refuse_repeats(self)
        _refuse_counts(self)

    @property
    def classes(self) -> list[Row]:
        """Rows of classes; the position is the class number."""
        return [row for row in self.rows if not row.ignore]

    @property
    def names(self) -> list[str]:
        return [row.name for row in self.classes]

    @property
    def ignored(self) -> list[int]:
        """All ids that are ignored, sorted."""
        return sorted({*self.ignored_ids, *(row.id for row in self.rows if row.ignore)})

    @property
    def palette(self) -> np.ndarray:
        """uint8 [classes, 3]: RGB of each class; VOC's colours where the table has none."""
        colours = [row.colour for row in self.classes]
        known = [voc_colour(i + 1) if c is None else c for i, c in enumerate(colours)]
        return np.array(known, np.uint8)

    def ordered(self, names: Sequence[str]) -> ClassTable:
        """The same classes numbered in the order of `names`.

        Raises:
            InputError: they are not the same classes.
        """
        by_name = {row.name: row for row in self.classes}
        missing = [name for name in names if name not in by_name]
        extra = [name for name in by_name if name not in set(names)]
        if missing or extra:
            differences = [f"lacks {', '.join(missing)}"] * bool(missing)
            differences += [f"has {', '.join(extra)} besides"] * bool(extra)
            raise InputError(
                f"{self.where}: the classes (field name) are not the {len(names)} that are asked "
                f"for, it {' and '.join(differences)}; use sets with the same classes"
            )
        rows = [by_name[name] for name in names] + [row for row in self.rows if row.ignore]
        return replace(self, rows=tuple(rows), assumed=None)


def voc_colour(i: int) -> Colour:
    """The bits of i dealt out to red, green and blue, highest first (VOC devkit, VOCcolormap.m)."""
    channels = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            channels[channel] |= (i >> (3 * place + channel) & 1) << (7 - place)
    return channels[0], channels[1], channels[2]


def find_table(folder: Path) -> Path | None:
    """The table in a folder.

    Raises:
        InputError: there are several.
    """
    tables = [folder / name for name in FILES if (folder / name).is_file()]
    if len(tables) > 1:
        raise InputError(
            f"{folder}: has {' and '.join(path.name for path in tables)}; keep one class table"
        )
    return tables[0] if tables else None


def read_table(path: Path) -> ClassTable:
    """Read a table.

    Raises:
        InputError: it cannot be read, or is no such table; names the row and the field.
    """
    entries, ignored = _entries(path, read_text(path))
    rows = tuple(_row(entry, i, path) for i, entry in enumerate(entries))
    # Only a table that names neither 255 nor anything ignored gets the usual 255.
    named = any(row.id == IGNORE for row in rows) or any(row.ignore for row in rows)
    by_colour = path.name in BY_COLOUR
    return ClassTable(
        rows,
        str(path),
        tuple(ignored if ignored is not None else [IGNORE] * (not named)),
        silent=ignored is None and (path.name == LABELMAP or not named),
        by_colour=by_colour,
    )


def _entries(path: Path, text: str) -> tuple[list[Any], list[int] | None]:
    """Rows and ignored ids."""
    if path.name in FOREIGN:
        return FOREIGN[path.name](text, str(path)), None
    return _csv(path, text) if path.suffix == ".csv" else _tree(path, text)


def _tree(path: Path, text: str) -> tuple[list[Any], list[int] | None]:
    """Rows and ignored ids of JSON or YAML."""
    try:
        is_json = path.suffix == ".json"
        tree = json.loads(text) if is_json else yaml.load(text, yaml.BaseLoader)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        reason = short_line(str(error))
        raise InputError(f"{path}: not {path.suffix[1:].upper()} ({reason}); mend it") from error
    entries = tree.get("classes") if isinstance(tree, dict) else tree
    if not isinstance(entries, list):
        raise InputError(
            f"{path}: no list of classes; give a list of rows with id and name, or a mapping of "
            "`classes` to it"
        )
    if not isinstance(tree, dict) or "ignore" not in tree:
        return entries, None
    ignored = tree["ignore"] if isinstance(tree["ignore"], list) else [tree["ignore"]]
    # BaseLoader leaves all scalars of YAML as text, so that a class may be called no or null.
    nothing = (None,) if is_json else ("", "~", "null")
    return entries, [_number(x, f"{path}: ignore") for x in ignored if x not in nothing]


def _csv(path: Path, text: str) -> tuple[list[Any], None]:
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    try:
        head, rows = reader.fieldnames or (), list(reader)
    except csv.Error as error:
        raise InputError(f"{path}: not CSV ({error}); mend it") from error
    if not {"id", "name"} <= set(head):
        raise InputError(
            f"{path}: the first line is {shown(','.join(head))}; give it the columns id and name, "
            "and colour and ignore where there are any"
        )
    for i, row in enumerate(rows):
        if None in row:
            raise InputError(
                f"{path}: classes[{i}]: has more columns than the first line; quote it"
            )
    return [{k: v for k, v in row.items() if v not in (None, "")} for row in rows], None


def _row(entry: Any, i: int, path: Path) -> Row:
    where = f"{path}: classes[{i}]"
    if isinstance(entry, str):
        return Row(i, require_name(entry, where))
    if not isinstance(entry, dict):
        raise InputError(
            f"{where}: is {shown(entry)}; give a name, or a row of id, name and colour"
        )
    known = {"id", "name", "colour", "color", "ignore"}
    ignore = require_flag(entry.get("ignore", False), f"{where}: ignore")
    missing = [field for field in ("id", "name") if field not in entry]
    if missing and not (ignore and missing == ["name"]):
        others = ", ".join(short_line(str(key), 40) for key in list(entry)[:5] if key not in known)
        raise InputError(
            f"{where}: the field {missing[0]} is missing"
            + (f" ({others} is none that is known)" if others else "")
            + "; give each row id and name"
        )
    colour = entry.get("colour", entry.get("color"))
    return Row(
        _number(entry["id"], f"{where}: id"),
        require_name(entry.get("name", "ignored"), f"{where}: name").strip(),
        None if colour is None else read_colour(colour, f"{where}: colour"),
        ignore,
    )


def _number(value: Any, where: str) -> int:
    text = str(value).strip() if type(value) in (int, str) else ""
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) >= 2**16:
        raise InputError(f"{where} is {shown(value)}; give a whole number from 0 to 65535")
    return int(text)


def read_colour(value: Any, where: str) -> Colour:
    """`#rrggbb` or three numbers, in a list or in text.

    Raises:
        InputError: it is neither.
    """
    parts: Any = value
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"#[0-9a-fA-F]{6}", text):
            parts = [int(text[i : i + 2], 16) for i in (1, 3, 5)]
        else:
            parts = re.split(r"[\s,;]+", text)
    if isinstance(parts, list) and len(parts) == 3:
        parts = [
            int(x) if isinstance(x, str) and x.isdecimal() and len(x) < 4 else x for x in parts
        ]
    good = isinstance(parts, list) and len(parts) == 3
    if not good or not all(type(x) is int and 0 <= x <= 255 for x in parts):
        raise InputError(f"{where} is {shown(value)}; give #rrggbb or three numbers from 0 to 255")
    return parts[0], parts[1], parts[2]


def _refuse_repeats(table: ClassTable) -> None:
    """One id, one colour and one name mean one class each."""
    seen: dict[tuple[str, Any], Row] = {}
    for row in table.rows:
        values = [("id", row.id), ("colour", row.colour)]
        values += [("name", row.name)] * (not row.ignore)
        for field, value in values:
            other = seen.setdefault((field, value), row)
            # Ignored rows may share a colour: their pixels count nowhere either way.
            if value is None or other is row or (field == "colour" and other.ignore and row.ignore):
                continue
            raise InputError(
                f"{table.where}: {field} {shown(value)} belongs to both {shown(other.name)} (id "
                f"{other.id}) and {shown(row.name)} (id {row.id}); give each its own"
            )
    for i in table.ignored_ids:
        if ("id", i) in seen and not seen["id", i].ignore:
            raise InputError(
                f"{table.where}: ignore: {i} is the id of the class {seen['id', i].name!r}, too; "
                "take it out of one of them"
            )


def _refuse_counts(table: ClassTable) -> None:
    count = len(table.classes)
    if not 2 <= count <= MAX_CLASSES:
        raise InputError(
            f"{table.where}: {count} classes; give a row to each of 2 to {MAX_CLASSES}, to the "
            "background, too"
        )
