"""Files below a local folder: each directory once, whatever its links say."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from ssld.data.account import HIDDEN, OUTSIDE_UTF8, Account
from ssld.data.storage import hides

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


def is_text(name: str) -> bool:
    """Whether a name is UTF-8, so that manifests, logs and tables can hold it."""
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
