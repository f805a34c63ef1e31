"""Files that a reader never sees half, and folders that one command at a time is at work in."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ssld.common.errors import InputError, one_line

LOCK = ".lock"
"""In a folder that a command is at work in."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` with `content` in one step that survives a power cut.

    Raises:
        InputError: it cannot be written; what was there is untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            # Names of files need not be text: \udcff is written out, and stops nothing.
            text = isinstance(content, str)
            file.write(content.encode("utf-8", "backslashreplace") if text else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: Exception) -> InputError:
    """What to say when `path` cannot be written."""
    said = one_line(error)
    return InputError(
        f"{path} cannot be written ({said}); free space or mend the folder, then go on with the "
        "same command, a training run with --resume"
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
