"""A folder of images, nested as it may be; labels are the names of its first-level subfolders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from ssld.data.decode import Unreadable
from ssld.data.storage import Address, absolute, is_hidden, is_remote, list_files, read_all
from ssld.errors import InputError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".jfif", ".ppm"}

_UNKNOWN = -2
"""Size of a remote file whose store does not tell; -1 is a broken link."""


class FolderSource:
    """Images below `path`, local or remote, sorted by relative path.

    Args:
        files: what `storage.list_files` says of a remote folder; None: it is asked.

    Raises:
        InputError: there are none, or a remote folder cannot be listed.
    """

    def __init__(self, path: str, files: Mapping[str, int | None] | None = None) -> None:
        self.path = path
        if files is None and is_remote(path):
            files = list_files(path)
        found, sizes, self.ignored = _scan(path) if files is None else _choose(files)
        if not found:
            others = f" ({self.ignored} files of other kinds)" if self.ignored else ""
            raise InputError(
                f"{path}: no image in this folder{others}; images end in "
                f"{', '.join(sorted(EXTENSIONS))}"
            )
        # Arrow strings, not a Python list: loader processes share the memory, also for millions.
        self._names = pa.array(found, pa.large_string())
        self._sizes = np.array(sizes, np.int64)
        classes = {name.split("/", 1)[0] for name in found if "/" in name}
        self.class_names = sorted(classes) or None

    def __len__(self) -> int:
        return len(self._names)

    def sample_id(self, i: int) -> str:
        return self._names[i].as_py()

    def location(self, i: int) -> str:
        return os.path.join(self.path, self.sample_id(i))

    def address(self, i: int) -> Address:
        return Address(absolute(self.location(i)))

    def label(self, i: int) -> str | None:
        folder, slash, _ = self.sample_id(i).partition("/")
        return folder if slash else None

    def size(self, i: int) -> int | None:
        size = int(self._sizes[i])
        return None if size == _UNKNOWN else size

    def read(self, i: int) -> bytes:
        data = read_all(self.location(i))
        if self._sizes[i] not in (len(data), _UNKNOWN):
            raise Unreadable(
                f"changed since the run began: {self._sizes[i]} bytes then, {len(data)} now"
            )
        return data


def _scan(path: str) -> tuple[list[str], list[int], int]:
    """Sorted posix paths of images relative to `path`, their sizes, and the number of others."""
    found, ignored = [], 0
    for folder, folders, files in os.walk(path, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.startswith("."):
                continue
            if os.path.splitext(name)[1].lower() in EXTENSIONS:
                file = os.path.join(folder, name)
                relative = _as_text(Path(os.path.relpath(file, path)).as_posix())
                found.append((relative, _size(file)))
            else:
                ignored += 1
    found.sort()
    return [name for name, _ in found], [size for _, size in found], ignored


def _choose(files: Mapping[str, int | None]) -> tuple[list[str], list[int], int]:
    """The same as `_scan` from the files of a remote folder and their sizes."""
    shown = [name for name in files if not is_hidden(name)]
    found = sorted(name for name in shown if os.path.splitext(name)[1].lower() in EXTENSIONS)
    sizes = [files[name] for name in found]
    known = [_UNKNOWN if size is None else size for size in sizes]
    return found, known, len(shown) - len(found)


def _size(file: str) -> int:
    try:
        return os.stat(file).st_size
    except OSError:  # a broken link: reading it says so
        return -1


def _as_text(name: str) -> str:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{name!r}: the file name is not valid UTF-8; rename it") from error
    return name
