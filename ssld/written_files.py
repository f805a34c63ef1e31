"""Files that ssld wrote and reads again: since then an editor, a disk or a sync may have changed
them, and then one sentence says which one, whatever it is that fails."""

from __future__ import annotations

import json
import pickle
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from ssld.errors import InputError
from ssld.settings_file import MOST_NODES

WRONG = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError),
    *(EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error),
    *(yaml.YAMLError, pickle.UnpicklingError),
)
"""What reading a file raises that is not what was written."""
SHOWN = 200
"""Characters of a reason."""


@contextmanager
def reading(place: str | Path, advice: str, *more: type[Exception]) -> Iterator[None]:
    """Say of whatever fails inside that `place` is damaged.

    Args:
        place: the file, or the folder whose files are read.
        advice: what to do.
        more: what counts as damage besides `WRONG`; torch raises RuntimeError.

    Raises:
        InputError: it is; those from inside stay as they are.
        OSError: it cannot be read at all.
    """
    try:
        yield
    except InputError:
        raise
    except (*WRONG, *more) as error:
        said = " ".join(str(error).split())[:SHOWN]
        raise InputError(
            f"{place} is damaged ({type(error).__name__}{f': {said}' if said else ''}); {advice}"
        ) from error


def read_object(path: Path, advice: str) -> dict[str, Any]:
    """What a JSON or YAML file says, by its ending, which must be an object.

    Raises:
        InputError: it is none.
        OSError: it cannot be read.
    """
    with reading(path, advice):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".yaml":
            found = yaml.safe_load(text)
            _count(found, {})
        else:
            found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError(f"it is no object but {str(found)[:40]!r}")
    return found


def _count(value: Any, known: dict[int, int]) -> int:
    """Values of a YAML file, each anchor as often as it is named.

    Args:
        known: of lists and mappings by id; 0 while one is being counted.

    Raises:
        TypeError: a date, bytes or a set, none of which ssld writes.
        ValueError: a value that holds itself, or more than a settings file may have.
    """
    if value is None or isinstance(value, str | int | float):
        return 1
    if not isinstance(value, dict | list):
        raise TypeError(f"it holds a {type(value).__name__}")
    if id(value) not in known:
        known[id(value)] = 0
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(part, known) for part in parts)
    if not 0 < known[id(value)] <= MOST_NODES:
        raise ValueError("a value holds itself, or there are too many")
    return known[id(value)]
