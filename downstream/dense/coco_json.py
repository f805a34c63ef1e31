"""COCO's JSON, of boxes and of panoptic masks: lists of objects that name each other by ids
(cocodataset.org, "Data format"). What is wrong is named by its place in the file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from downstream.dense.texts import decode_text, require_unique, short_line, shown, writable
from ssld.common.errors import InputError

LISTS = ("images", "annotations", "categories")
INT64 = 2**63

Entries = list[dict[str, Any]]


def read_lists(path: str) -> tuple[Entries, Entries, Entries]:
    """Images, annotations and categories; see `read_content`."""
    content = read_content(path)
    return content["images"], content["annotations"], content["categories"]


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
        text: may be text, as those of Cityscapes' panoptic images are.

    Raises:
        InputError: one is missing, no integer, or there twice.
    """
    values = column(place, entries, "id")
    for i, value in enumerate(values):
        if text and type(value) is str:
            continue
        if type(value) is not int or not -INT64 <= value < INT64:
            raise InputError(
                f"{place}[{i}].id is {shown(value)}; give an integer of 64 bits at most"
            )
    require_unique(values, lambda i: f"{place}[{i}].id")
    return values


def file_names(place: str, entries: Entries) -> list[str]:
    """Relative paths of files.

    Raises:
        InputError: one is missing, or names no file.
    """
    names = []
    for i, value in enumerate(column(place, entries, "file_name")):
        where = f"{place}[{i}].file_name is {shown(value)}"
        if not isinstance(value, str) or not value.strip() or os.path.isabs(value):
            raise InputError(f"{where}; give a name relative to the files' folder")
        if not writable(value):
            raise InputError(f"{where}, which no file has")
        names.append(Path(value).as_posix())
    return names


def indices(
    path: str, annotations: Entries, key: str, known: Sequence[Any], place: Callable[[int], str]
) -> list[int]:
    """Which image or category each annotation is of.

    Args:
        key: image_id or category_id.
        known: the ids of all.
        place: how to name annotation j.

    Raises:
        InputError: an id that nothing has.
    """
    index = {value: i for i, value in enumerate(known)}
    values = column(f"{path}: annotations", annotations, key)
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
