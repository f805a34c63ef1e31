"""A folder of images, nested as it may be; labels are the names of its first-level subfolders."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from tqdm import tqdm

from ssld.common.errors import InputError
from ssld.common.streams import bar_seconds
from ssld.data.account import HIDDEN, OUTSIDE_UTF8, Account
from ssld.data.decode import Unreadable
from ssld.data.labels import class_order
from ssld.data.listing import is_text, list_folder
from ssld.data.storage import Address, absolute, is_hidden, is_remote, list_files, read_all

pc: Any = pyarrow.compute  # whose functions are made when it is imported

EXTENSIONS = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm",
    ".avif", ".jp2",
}  # fmt: skip

_UNKNOWN = -2
"""Size of a remote file whose store does not tell; -1 is a broken link."""
_LONG_SECONDS = 5.0
"""After which asking for sizes shows progress."""
_ASKED = 1000
"""Files whose sizes are asked for at once."""
_SLOW_SECONDS = 5e-5
"""A disk that takes longer for a file is waited for by _THREADS at once; a local one takes 3e-6."""
_THREADS = 16


class FolderSource:
    """Images below `path`, local or remote, sorted by relative path.

    The sizes of local files are unknown until `sizes`, `size` or `listed` asks for them; from then
    on a file of another size counts as changed.

    Args:
        files: what `storage.list_files` says of a remote folder; None: it is asked.

    Raises:
        InputError: there are none, or a remote folder cannot be listed.
    """

    def __init__(self, path: str, files: Mapping[str, int | None] | None = None) -> None:
        self.path = path
        if files is None and is_remote(path):
            files = list_files(path)
        self._sizes: np.ndarray | None = None
        if files is None:
            names, self.account = list_folder(path, EXTENSIONS)
        else:
            names, sizes, self.account = _choose(files)
            self._sizes = np.array(sizes, np.int64)
        if not names:
            left = self.account.left_out()
            raise InputError(
                f"{path}: no image in this folder{f' (it has {left})' if left else ''}; images "
                f"end in {', '.join(sorted(EXTENSIONS))}"
            )
        # Arrow strings, not a Python list: loader processes share the memory, also for millions.
        self._names = pa.array(names, pa.large_string())
        classes = {name.split("/", 1)[0] for name in names if "/" in name}
        self.class_names = class_order(classes) or None

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

    def labeled(self) -> np.ndarray:
        return pc.match_substring(self._names, "/").to_numpy(zero_copy_only=False)

    def size(self, i: int) -> int | None:
        size = int(self.sizes()[i])
        return None if size == _UNKNOWN else size

    def sizes(self) -> np.ndarray:
        """int64 [n]: bytes of each file, asked for once, when the first is wanted."""
        if self._sizes is None:
            self._sizes = _sizes(self.path, self._names)
        return self._sizes

    def take_sizes(self, sizes: np.ndarray) -> None:
        """What another process found, so that this one need not ask."""
        self._sizes = sizes

    def listed(self, rows: np.ndarray) -> tuple[pa.Array, pa.Array]:
        sizes = self.sizes()[rows]
        return self._names.take(pa.array(rows)), pa.array(sizes, mask=sizes == _UNKNOWN)

    def read(self, i: int) -> bytes:
        data = read_all(self.location(i))
        if self._sizes is not None and self._sizes[i] not in (len(data), _UNKNOWN):
            raise Unreadable(
                f"changed since the run began: {self._sizes[i]} bytes then, {len(data)} now"
            )
        return data


def _sizes(folder: str, names: pa.Array) -> np.ndarray:
    """int64 [n]: bytes of each file, asked for by threads where the disk is slow to answer."""
    root, sizes = os.path.join(folder, ""), np.empty(len(names), np.int64)

    def ask(first: int) -> int:
        part = names.slice(first, _ASKED).to_pylist()
        sizes[first : first + len(part)] = [_size(root + name) for name in part]
        return len(part)

    begun = time.perf_counter()
    asked = ask(0)
    slow = time.perf_counter() - begun > _SLOW_SECONDS * asked
    bar = tqdm(
        total=len(names),
        desc=f"sizes of {folder}",
        unit="file",
        delay=_LONG_SECONDS,
        mininterval=bar_seconds(),
        leave=False,
    )
    with bar, ThreadPoolExecutor(_THREADS if slow else 1) as pool:
        bar.update(asked)
        for count in pool.map(ask, range(asked, len(names), _ASKED)):
            bar.update(count)
    return sizes


def _size(file: str) -> int:
    try:
        return os.stat(file).st_size
    except OSError:  # a broken link: reading it says so
        return -1


def _choose(files: Mapping[str, int | None]) -> tuple[list[str], list[int], Account]:
    """Names and sizes of a remote folder's images, and an account of the rest."""
    names, account = [], Account()
    for name in sorted(files):
        if is_hidden(name):
            account.leave(HIDDEN, name)
        elif os.path.splitext(name)[1].lower() not in EXTENSIONS:
            account.leave_other(name)
        elif not is_text(name):
            account.leave(OUTSIDE_UTF8, name)
        else:
            names.append(name)
    sizes = [files[name] for name in names]
    return names, [_UNKNOWN if size is None else size for size in sizes], account
