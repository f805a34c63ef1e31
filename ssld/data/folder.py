"""A folder of images, nested as it may be; labels are the names of its first-level subfolders. Of
a local one each directory is read once, whatever its links say."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from ssld.common.errors import InputError
from ssld.common.streams import bar_output
from ssld.data.decode import Unreadable
from ssld.data.labels import class_order
from ssld.data.source import HIDDEN, OUTSIDE_UTF8, Account
from ssld.data.storage import (
    Address,
    absolute,
    hides,
    is_hidden,
    is_remote,
    is_text,
    list_files,
    read_all,
)
from ssld.data.texts import Texts

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
                f"{path}: no image in this folder{f' (it has {left})' if left else ''}: put some "
                f"there, or name another; images end in {', '.join(sorted(EXTENSIONS))}"
            )
        self._names = Texts(names)
        classes = {name.split("/", 1)[0] for name in names if "/" in name}
        self.class_names = class_order(classes) or None

    def __len__(self) -> int:
        return len(self._names)

    def sample_id(self, i: int) -> str:
        return self._names[i]

    def location(self, i: int) -> str:
        return os.path.join(self.path, self.sample_id(i))

    def address(self, i: int) -> Address:
        return Address(absolute(self.location(i)))

    def label(self, i: int) -> str | None:
        folder, slash, _ = self.sample_id(i).partition("/")
        return folder if slash else None

    def labeled(self) -> np.ndarray:
        return self._names.have("/")

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

    def listed(self, rows: np.ndarray) -> tuple[list[str], list[int | None]]:
        sizes = [None if size == _UNKNOWN else size for size in self.sizes()[rows].tolist()]
        return self._names.take(rows), sizes

    def read(self, i: int) -> bytes:
        data = read_all(self.location(i))
        if self._sizes is not None and self._sizes[i] not in (len(data), _UNKNOWN):
            raise Unreadable(
                f"changed since the run began: {self._sizes[i]} bytes then, {len(data)} now"
            )
        return data


def _sizes(folder: str, names: Texts) -> np.ndarray:
    """int64 [n]: bytes of each file, asked for by threads where the disk is slow to answer."""
    root, sizes = os.path.join(folder, ""), np.empty(len(names), np.int64)

    def ask(first: int) -> int:
        part = names.take(np.arange(first, min(first + _ASKED, len(names))))
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
        **bar_output(),
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


CIRCLE = "linked folder that was read already or holds this one"
UNLISTED = "folder that cannot be listed"


def list_folder(path: str, endings: Iterable[str]) -> tuple[list[str], Account]:
    """Sorted posix paths, relative to `path`, of the files below that have one of `endings`.

    Linked folders are followed, real ones first; no directory is read twice, by its device and
    number. A file is not asked for its size or time: millions take minutes on a network's disk.
    """
    listing = _Listing(path, frozenset(endings))
    listing.read()
    listing.files.sort()
    return listing.files, listing.account


class _Listing:
    def __init__(self, path: str, endings: frozenset[str]) -> None:
        self.path = path
        self.endings = endings
        self.files: list[str] = []
        self.account = Account(folder=path)
        self.seen: set[tuple[int, int]] = set()
        self.links: list[str] = []
        """Linked folders that were met, relative."""

    def read(self) -> None:
        self._tree("")
        while self.links:
            waiting, self.links = sorted(self.links), []
            for link in waiting:
                if self._is_circle(link):
                    self.account.leave(CIRCLE, link)
                else:
                    self.account.note("linked folder(s) followed", link)
                    self._tree(link)

    def _is_circle(self, link: str) -> bool:
        """Whether its directory was read already, or lies above the root."""
        if self._identity(link) in self.seen:
            return True
        target, root = (os.path.realpath(os.path.join(self.path, x)) for x in (link, ""))
        return os.path.commonpath([target, root]) == target

    def _identity(self, relative: str) -> tuple[int, int] | None:
        try:
            status = os.stat(os.path.join(self.path, relative))
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _tree(self, top: str) -> None:
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            identity = self._identity(folder)
            if identity in self.seen:  # a mount of what was read, or below two links
                self.account.leave(CIRCLE, folder)
                continue
            if identity:
                self.seen.add(identity)
            prefix = f"{folder}/" if folder else ""
            for entry in self._entries(folder):
                self._take(entry, prefix + entry.name, waiting)

    def _entries(self, folder: str) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(os.path.join(self.path, folder)) as entries:
                yield from entries
        except OSError:
            self.account.leave(UNLISTED, folder or ".")

    def _take(self, entry: os.DirEntry[str], relative: str, waiting: list[str]) -> None:
        if hides(entry.name):
            self.account.leave(HIDDEN, relative)
            return
        if entry.is_dir(follow_symlinks=False):
            waiting.append(relative)
            return
        is_image = os.path.splitext(entry.name)[1].lower() in self.endings
        linked = entry.is_symlink()
        if linked and not is_image and entry.is_dir():
            self.links.append(relative)
        elif not is_image:
            self.account.leave_other(relative)
        elif not linked and not entry.is_file(follow_symlinks=False):
            self.account.leave("no file but a pipe, socket or device", relative)
        elif not is_text(relative):
            self.account.leave(OUTSIDE_UTF8, relative)
        else:
            self.files.append(relative)
            if linked:
                self.account.note("of the images are links", relative)
