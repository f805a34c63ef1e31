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

from ssld.common.errors import InputError, one_line
from ssld.common.settings_file import count_values

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
        said = one_line(error, SHOWN)
        raise InputError(
            f"{place} is damaged ({type(error).__name__}{f': {said}' if said else ''}); {advice}"
        ) from error


def read_object(path: Path, advice: str) -> dict[str, Any]:
    """What a JSON or YAML file says, by its ending, which must be an object.

    Raises:
        InputError: it is none; YAML with tags, or with more values than any settings have.
        OSError: it cannot be read.
    """
    with reading(path, advice):
        text = path.read_text(encoding="utf-8")
        found = _yaml(text) if path.suffix == ".yaml" else json.loads(text)
        if not isinstance(found, dict):
            raise ValueError(f"it is no object but {str(found)[:40]!r}")
    return found


def _yaml(text: str) -> Any:
    node = yaml.compose(text, yaml.SafeLoader)
    if node is None:
        raise ValueError("it is empty")
    try:
        count_values(node, {})
    except InputError as error:
        raise ValueError(str(error)) from error
    found = yaml.safe_load(text)
    json.dumps(found)  # no date, no bytes, no number of 5,000 digits is of ours
    return found
