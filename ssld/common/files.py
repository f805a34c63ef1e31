"""Files that a reader never sees half, folders that one command at a time is at work in, and what
was written so and is read again: since then an editor, a disk or a sync may have changed it, and
then one sentence says which file, whatever it is that fails."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import yaml
from filelock import FileLock, Timeout

from ssld.common.errors import InputError, one_line
from ssld.common.settings_file import count_values

LOCK = ".lock"
"""In a folder that a command is at work in."""


def write_atomically(path: Path, content: str | bytes | Callable[[BinaryIO], object]) -> None:
    """Replace `path` in one step that survives a power cut.

    Args:
        content: or what writes it to a file.

    Raises:
        InputError: it cannot be written; what was there is untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            if isinstance(content, str):  # names of files need not be text: \udcff is written out
                content = content.encode("utf-8", "backslashreplace")
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:  # whatever ends it, no half of a file is left
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise


def cannot_write(path: Path, error: Exception) -> InputError:
    """What to say when `path` cannot be written."""
    return InputError(
        f"{path} cannot be written ({one_line(error)}); free space or mend the folder, then go on "
        "with the same command, a training run with --resume"
    )


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Make `out`, for one command at a time.

    Raises:
        InputError: it cannot be made, or another command is at work in it.
    """
    with contextlib.ExitStack() as held:
        try:
            out.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(NotImplementedError):  # some network file systems
                held.enter_context(FileLock(out / LOCK, timeout=0))
        except Timeout as error:
            raise InputError(
                f"out {out}: another command is at work there; wait for its end"
            ) from error
        except OSError as error:
            raise cannot_write(out, error) from error
        yield


WRONG = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError),
    *(EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error),
    *(yaml.YAMLError, pickle.UnpicklingError),
)
"""What reading a file raises that is not what was written."""
SHOWN = 200
"""Characters of a reason."""


@contextlib.contextmanager
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
        reason = f"{type(error).__name__}: {one_line(error, SHOWN)}"
        raise InputError(f"{place} is damaged ({reason}); {advice}") from error


def read_object(path: Path, advice: str) -> dict[str, Any]:
    """What a JSON or YAML file says, by its ending, which must be an object.

    Raises:
        InputError: it is none; YAML with tags, or with more values than any settings have.
        OSError: it cannot be read.
    """
    with reading(path, advice):
        text = path.read_text(encoding="utf-8")
        result = _yaml(text) if path.suffix == ".yaml" else json.loads(text)
        if not isinstance(result, dict):
            raise ValueError(f"it is no object but {str(result)[:40]!r}")
    return result


def _yaml(text: str) -> Any:
    node = yaml.compose(text, yaml.SafeLoader)
    if node is None:
        raise ValueError("it is empty")
    try:
        count_values(node, {})
    except InputError as error:
        raise ValueError(str(error)) from error
    result = yaml.safe_load(text)
    json.dumps(result)  # no date, no bytes, no number of 5,000 digits is of ours
    return result
