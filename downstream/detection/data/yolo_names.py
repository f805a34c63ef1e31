"""Class names and splits of YOLO's sets: `data.yaml` as ultralytics has it, `classes.txt`,
`obj.names` as darknet and CVAT have it.

All scalars of the YAML are text: `names: [yes, no, 1.0, null]` are four names, not True, False, a
number and nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from downstream.dense.texts import (
    name_lines,
    one_line,
    read_text,
    require_name,
    require_unique,
    shown,
)
from ssld.common.errors import InputError

TABLE = "data.yaml"
LISTS = ("classes.txt", "obj.names")
SPLITS = ("train", "val", "valid", "test")


def class_names(root: Path, labels: Path) -> tuple[list[str], Path]:
    """Names by class number, and the file that has them."""
    table = root / TABLE
    if table.is_file():
        return names_of(table, read_yaml(table)), table
    for file in (*(root / name for name in LISTS), labels / LISTS[0]):
        if file.is_file():
            return name_lines(file), file
    raise InputError(
        f"{table}: no such file, and no classes.txt; give the names of the classes in one of "
        "them, in the order of their numbers"
    )


def read_yaml(file: Path) -> dict[str, Any]:
    """A mapping whose scalars are text.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        content = yaml.load(read_text(file), yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = one_line(str(error))
        raise InputError(f"{file}: cannot be read as YAML ({reason})") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: is no mapping; give names, and train and val")
    return content


def names_of(file: Path, content: dict[str, Any]) -> list[str]:
    """The names by class number, distinct.

    Raises:
        InputError: there are none, or not one for each number.
    """
    names = content.get("names")
    if isinstance(names, dict):
        names = _in_order(file, names)
    if not isinstance(names, list) or not names:
        raise InputError(f"{file}: has no 'names'; give the classes in the order of their numbers")
    names = [require_name(name, f"{file}: names[{i}]").strip() for i, name in enumerate(names)]
    count = content.get("nc", str(len(names)))
    if count != str(len(names)):
        raise InputError(f"{file}: nc is {_bare(count)}, but names has {len(names)}; mend one")
    require_unique(names, lambda i: f"{file}: names[{i}]")
    return names


def _in_order(file: Path, names: dict[Any, Any]) -> list[Any]:
    numbers = {key: int(key) for key in names if isinstance(key, str) and key.isdecimal()}
    if len(numbers) < len(names) or sorted(numbers.values()) != list(range(len(names))):
        keys = sorted(numbers.values()) if len(numbers) == len(names) else list(names)
        raise InputError(f"{file}: names has the keys {shown(keys)}; number them from 0 on")
    return [names[key] for key in sorted(names, key=numbers.__getitem__)]


def _bare(value: Any) -> str:
    return value[:40] if isinstance(value, str) else shown(value)


def split_places(file: Path, content: dict[str, Any], split: str) -> list[Path]:
    """Folders and lists that a split of a `data.yaml` names.

    `path` is the folder to which they are relative, itself relative to the file's; where it is not
    there (it often is a folder on the author's disk), they are relative to the file's own folder.

    Raises:
        InputError: no such split, or nothing is where it says.
    """
    value = content.get(split)
    if not value:
        known = [name for name in content if name in SPLITS and content[name]]
        choice = " or ".join(f"{file}::{name}" for name in known) or "a file that has train and val"
        raise InputError(f"{file}: has no split {split!r}; give {choice}")
    values = value if isinstance(value, list) else [value]
    base = content.get("path") or "."
    for i, text in enumerate([base, *values]):
        if not isinstance(text, str) or "\0" in text:
            where = "path" if i == 0 else f"{split}[{i - 1}]"
            raise InputError(f"{file}: {where} is {shown(text)}; give a folder or a list of images")
    return [_place(file, base, text, split) for text in values]


def _place(file: Path, base: str, text: str, split: str) -> Path:
    root = file.parent
    places = [root / base / text, root / text]
    if text.startswith("../"):  # as Roboflow writes it, which is meant from a folder further down
        places.append(root / text[3:])
    for place in places:
        if os.path.exists(place):
            return Path(os.path.normpath(place))
    raise InputError(
        f"{file}: {split} is {shown(text)}, and there is no such folder or list in "
        f"{one_line(str(root / base))} or {root}; mend path or {split}"
    )
