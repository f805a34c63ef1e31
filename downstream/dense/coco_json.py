"""COCO's JSON, of boxes and of panoptic masks: lists of objects that name each other by ids
(cocodataset.org, "Data format"). What is wrong is named by its place in the file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from downstream.dense.pictures import common_folder, missing_from, posix
from downstream.dense.texts import decode_text, require_unique, short_line, shown, writable
from ssld.common.errors import InputError

LISTS = ("images", "annotations", "categories")
INT64 = 2**63
PREFIXES = ("instances_", "person_keypoints_")
"""Of the official files: instances_train2017.json describes train2017/."""

Entries = list[dict[str, Any]]


def read_content(
    path: str, object_hook: Callable[[dict[str, Any]], Any] | None = None
) -> dict[str, Any]:
    """All of a file, in which LISTS are lists of objects.

    Args:
        object_hook: what is kept of each object, as of `json.loads`.

    Raises:
        InputError: the file cannot be read or lacks one of the lists; there is no image.
    """
    try:
        text, _ = decode_text(Path(path).read_bytes())
        content = json.loads(text, object_hook=object_hook)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({short_line(str(error))})") from error
    for key in LISTS:
        value = content.get(key) if isinstance(content, dict) else None
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise InputError(
                f"{path}: has no list of objects {key!r}; COCO's format has {', '.join(LISTS)}"
            )
    if not content["images"]:
        raise InputError(f"{path}: the list 'images' is empty; give a file that has images")
    return content


def column(place: str, entries: Entries, key: str) -> list[Any]:
    """A field of all entries.

    Args:
        place: where they are, `FILE: LIST`.

    Raises:
        InputError: an entry lacks it.
    """
    for i, entry in enumerate(entries):
        if key not in entry:
            raise InputError(f"{place}[{i}] has no field {key!r}; COCO's format needs it")
    return [entry[key] for entry in entries]


def ids(place: str, entries: Entries, text: bool = False) -> list[Any]:
    """The distinct ids of images or categories.

    Args:
        text: all may be text, as those of Cityscapes' panoptic images are.

    Raises:
        InputError: one is missing, no integer, or there twice.
    """
    values = column(place, entries, "id")
    all_text = text and all(type(value) is str and value.strip() for value in values)
    for i, value in enumerate(values if not all_text else ()):
        if type(value) is not int or not -INT64 <= value < INT64:
            raise InputError(
                f"{place}[{i}].id is {shown(value)}; give an integer of 64 bits at most"
            )
    require_unique(values, lambda i: f"{place}[{i}].id")
    return values


def file_names(place: str, entries: Entries) -> list[str]:
    """Paths of files, with slashes; `find_images` says where they are, as they may be absolute or
    another machine's.

    Raises:
        InputError: one is missing, or names no file.
    """
    names = []
    for i, value in enumerate(column(place, entries, "file_name")):
        where = f"{place}[{i}].file_name is {shown(value)}"
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{where}; give a name relative to the files' folder")
        if not writable(value):
            raise InputError(f"{where}, which no file has")
        names.append(posix(value))
    return names


def indices(
    path: str, annotations: Entries, key: str, known: Sequence[Any], place: Callable[[int], str]
) -> list[int]:
    """Which image or category each annotation is of.

    Args:
        key: image_id or category_id.
        known: the ids of all, numbers or text.
        place: how to name annotation j.

    Raises:
        InputError: an id that nothing has.
    """
    index = {value: i for i, value in enumerate(known)}
    values = column(f"{path}: annotations", annotations, key)
    if known and type(known[0]) is str:  # written as text in one list and as numbers in the other
        values = [str(value) if type(value) is int else value for value in values]
    else:
        values = [int(value) if _is_number(value) else value for value in values]
    # True and 1.0 are equal to 1, and are no ids.
    kinds = set(map(type, known))
    bad = [j for j, value in enumerate(values) if type(value) not in kinds or value not in index]
    if bad:
        what, given = key.removesuffix("_id"), shown(values[bad[0]])
        first = ", ".join(map(shown, sorted(known, key=lambda x: (type(x) is str, x))[:5]))
        first += ", ..." if len(known) > 5 else ""
        more = f" (and {len(bad) - 1} more are like it)" if len(bad) > 1 else ""
        raise InputError(
            f"{path}: {place(bad[0])} has {key} {given}, but no {what} in this file has that "
            f"id{more}; the ids are {first}"
        )
    return [index[value] for value in values]


def _is_number(value: Any) -> bool:
    return type(value) is str and value.isascii() and value.isdecimal() and len(value) < 19


def find_images(
    path: str, names: Sequence[str], folder: str | None, what: Callable[[int], str]
) -> tuple[str, list[str]]:
    """The folder that has all images of a file of annotations, and their names in it. Folders of
    another machine with which all names begin are left out, one by one.

    Args:
        names: of `file_names`.
        folder: to look in; by default those that `_candidates` names.
        what: image i's name, for messages.

    Raises:
        InputError: none has; naming the first that the best one lacks.
    """
    candidates = [x for x in ([folder] if folder else _candidates(Path(path))) if os.path.isdir(x)]
    if not candidates:
        raise InputError(f"{folder}: no such folder of images; check what follows ::")
    if all(map(os.path.isabs, names)):
        if not folder and not missing_from("", names):
            return common_folder(names)
    given, names = names, [name.lstrip("/") for name in names]
    missing = {candidate: missing_from(candidate, names) for candidate in candidates}
    best = min(candidates, key=lambda candidate: len(missing[candidate]))  # the first of equals
    fewest = missing[best]
    if not fewest:
        return best, list(names)
    moved = _shorter(names, candidates)
    if moved:
        return moved
    others = f" and {len(fewest) - 1} more of {len(names)}" if len(fewest) > 1 else ""
    raise InputError(
        f"{path}: {what(fewest[0])} {shown(given[fewest[0]])}{others} is no file in "
        f"{best}; complete the images, or name their folder as {os.path.basename(path)}::FOLDER"
    )


def _shorter(names: Sequence[str], candidates: Sequence[str]) -> tuple[str, list[str]] | None:
    """The first candidate that has all names without folders with which all of them begin."""
    shared = os.path.commonpath([os.path.dirname(name) for name in names]) if names else ""
    cut = 0
    for part in Path(shared).parts:
        cut += len(part) + 1
        rest = [name[cut:] for name in names]
        for candidate in candidates:
            there = os.path.isfile(os.path.join(candidate, rest[0]))
            if there and not missing_from(candidate, rest):
                return candidate, rest
    return None


def _candidates(path: Path) -> list[str]:
    """Beside the file, in `images/`, in a folder with its name; for `annotations/x.json` also
    beside that folder, as COCO itself has it."""
    stem = path.stem
    for prefix in PREFIXES:
        stem = stem.removeprefix(prefix)
    roots = [path.parent]
    if path.parent.absolute().name == "annotations":
        roots.append(path.parent.absolute().parent)
    inside = ("", "images", path.stem, stem, f"images/{stem}")
    return list(dict.fromkeys(str(root / name) for root in roots for name in inside))
