"""`data.yaml` as ultralytics has it (`ultralytics/data/utils.py: check_det_dataset`): classes, the
folders or lists of each split, and keypoints of pose sets.

All scalars of the YAML are text: `names: [yes, no, 1.0, null]` are four names, not True, False, a
number and nothing. Nothing is downloaded: what `download` says is not run.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from downstream.dense.pictures import posix
from downstream.dense.texts import read_text, require_name, require_unique, short_line, shown
from downstream.detection.data.keypoints import Keypoints, find_pairs
from ssld.common.errors import InputError

SPLITS = ("train", "val", "valid", "validation", "test")
DATASETS = "datasets"
"""ultralytics' folder of all sets, which `path: coco8` is in."""


def read_yaml(file: Path) -> dict[str, Any]:
    """A mapping whose scalars are text.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        content = yaml.load(read_text(file), yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = short_line(str(error))
        raise InputError(f"{file}: cannot be read as YAML ({reason})") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: is no mapping; give names, and train and val")
    return content


def names_of(file: Path, content: dict[str, Any]) -> list[str]:
    """The names by class number, distinct.

    Raises:
        InputError: there are none, or not one for each number.
    """
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, dict):
        names = _in_order(file, names)
    if "names" not in content and isinstance(count, str) and re.fullmatch("[1-9][0-9]{0,3}", count):
        names = [f"class_{i}" for i in range(int(count))]  # as ultralytics calls them
    if not isinstance(names, list) or not names:
        raise InputError(f"{file}: has no 'names'; give the classes in the order of their numbers")
    names = [require_name(name, f"{file}: names[{i}]").strip() for i, name in enumerate(names)]
    if count is not None and count != str(len(names)):
        shown_count = count[:40] if isinstance(count, str) else shown(count)
        raise InputError(f"{file}: nc is {shown_count}, but names has {len(names)}; mend one")
    require_unique(names, lambda i: f"{file}: names[{i}]")
    return names


def _in_order(file: Path, names: dict[Any, Any]) -> list[Any]:
    numbers = {key: int(key) for key in names if isinstance(key, str) and key.isdecimal()}
    if len(numbers) < len(names) or sorted(numbers.values()) != list(range(len(names))):
        keys = sorted(numbers.values()) if len(numbers) == len(names) else list(names)
        raise InputError(f"{file}: names has the keys {shown(keys)}; number them from 0 on")
    return [names[key] for key in sorted(names, key=numbers.__getitem__)]


def splits_of(content: dict[str, Any]) -> list[str]:
    """The splits that a `data.yaml` names."""
    return [name for name in SPLITS if content.get(name)]


def split_places(file: Path, content: dict[str, Any], split: str) -> list[Path]:
    """Folders and lists that a split of a `data.yaml` names.

    `path` is the folder to which they are relative, itself relative to the file's, to `datasets`
    there or beside it, or to where the command runs, in this order; where it is nowhere (it often
    is a folder on the author's disk), they are relative to the file's own folder.

    Raises:
        InputError: no such split, or nothing is where it says.
    """
    value = content.get(split)
    if not value:
        choice = " or ".join(f"{file}::{name}" for name in splits_of(content))
        raise InputError(
            f"{file}: has no split {split!r}; give {choice or 'a file that has train and val'}"
        )
    values = value if isinstance(value, list) else [value]
    base = content.get("path") or "."
    for i, text in enumerate([base, *values]):
        if not isinstance(text, str) or "\0" in text:
            where = "path" if i == 0 else f"{split}[{i - 1}]"
            raise InputError(f"{file}: {where} is {shown(text)}; give a folder or a list of images")
    hint = "; what its `download` says is not run: fetch the set" if content.get("download") else ""
    return [_place(file, posix(base), posix(text), split, hint) for text in values]


def _place(file: Path, base: str, text: str, split: str, hint: str) -> Path:
    root, here = file.parent, Path.cwd()
    roots = [root / base, root / DATASETS / base, root.absolute().parent / DATASETS / base]
    roots += [here / base, here / DATASETS / base, root]
    for folder in dict.fromkeys(roots):
        # `../train/images` of Roboflow is meant from a folder further down.
        for name in (text, text.removeprefix("../")):
            if os.path.exists(folder / name):
                return Path(os.path.normpath(folder / name))
    raise InputError(
        f"{file}: {split} is {shown(text)}, and there is no such folder or list in "
        f"{short_line(str(root / base))} or {root}; mend path or {split}{hint}"
    )


def read_pose(table: Path, content: dict[str, Any]) -> tuple[Keypoints, int, list[str]] | None:
    """`kpt_shape: [17, 3]`, `flip_idx` and `kpt_names` of ultralytics' pose sets; without names
    keypoints are called 1, 2, 3, ...

    Returns:
        the keypoints, how many numbers each has, and remarks; None of other sets.
    """
    shape = content.get("kpt_shape")
    if shape is None:
        return None
    known = isinstance(shape, list) and len(shape) == 2 and shape[1] in ("2", "3")
    if not known or not isinstance(shape[0], str) or not re.fullmatch("[1-9][0-9]{0,3}", shape[0]):
        raise InputError(f"{table}: kpt_shape is {shown(shape)}; give [keypoints, 2 or 3]")
    count = int(shape[0])
    names = content.get("kpt_names")
    if isinstance(names, dict):  # by class
        names = next(iter(names.values()), None)
    if names is None:
        names = [str(i + 1) for i in range(count)]
    if not isinstance(names, list) or len(names) != count:
        raise InputError(f"{table}: kpt_names is {shown(names)}; give {count} names")
    names = [require_name(name, f"{table}: kpt_names[{i}]") for i, name in enumerate(names)]
    require_unique(names, lambda i: f"{table}: kpt_names[{i}]")
    partners = content.get("flip_idx")
    if isinstance(partners, list):
        partners = [int(x) if isinstance(x, str) and x.isdecimal() else x for x in partners]
    pairs, remarks = find_pairs(names, [(f"{table}", {"flip_idx": partners})])
    return Keypoints(tuple(names), pairs), int(shape[1]), remarks
