"""A folder of images, nested as it may be; labels are the names of its first-level subfolders."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa

from ssld.data.decode import Unreadable
from ssld.errors import InputError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".jfif", ".ppm"}


class FolderSource:
    """Images below `path`, sorted by relative path.

    Raises:
        InputError: there are none.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        found, sizes, self.ignored = _scan(path)
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

    def label(self, i: int) -> str | None:
        folder, slash, _ = self.sample_id(i).partition("/")
        return folder if slash else None

    def size(self, i: int) -> int:
        return int(self._sizes[i])

    def read(self, i: int) -> bytes:
        data = Path(self.location(i)).read_bytes()
        if len(data) != self._sizes[i]:
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
