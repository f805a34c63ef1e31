"""Where images come from: a folder, a Parquet manifest or tar shards, chosen by what a path is."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Protocol

from ssld.data.folder import EXTENSIONS, FolderSource
from ssld.data.manifest import Blobs, ManifestSource
from ssld.data.shards import ShardSource
from ssld.data.storage import (
    Address,
    is_hidden,
    is_remote,
    list_files,
    read_all,
    read_range,
)
from ssld.errors import InputError


class Source(Protocol):
    """Images by number. Must pickle cheaply: loader processes get a copy."""

    path: str
    class_names: list[str] | None
    """Sorted names of classes, where labels are names."""

    def __len__(self) -> int: ...

    def sample_id(self, i: int) -> str:
        """A name that does not depend on where the set lies; it decides the views."""
        ...

    def location(self, i: int) -> str:
        """Where the image is, for messages."""
        ...

    def address(self, i: int) -> Address:
        """Where the image's bytes lie, for manifests; see `ManifestSource`."""
        ...

    def label(self, i: int) -> str | int | None:
        """Class name, class number, or None for an unlabeled image."""
        ...

    def size(self, i: int) -> int | None:
        """Bytes of the encoded image, where the source knows them without reading it."""
        ...

    def read(self, i: int) -> bytes:
        """The encoded image. Raises OSError, Unreadable when it is not what it was at the start."""
        ...


def open_source(path: str) -> Source:
    """Open a folder of images, a `.parquet` manifest, or tar shards (`x-{000..127}.tar`, a glob, a
    folder of them, a tar of tars), local or remote (any fsspec URL).

    Raises:
        InputError: it does not exist, is empty, or is none of these.
    """
    if path.endswith(".parquet"):
        return ManifestSource(path)
    if path.endswith(".tar"):
        return ShardSource(path)
    if is_remote(path):
        return _open_remote_folder(path)
    folder = Path(path)
    if not folder.exists():
        raise InputError(f"{path}: no such file or folder; check the path")
    if not folder.is_dir():
        raise InputError(f"{path}: not a folder, a .parquet manifest or .tar shards")
    if any(folder.glob("*.tar")):
        return ShardSource(str(folder / "*.tar"))
    return FolderSource(path)


def _open_remote_folder(url: str) -> Source:
    files = list_files(url)  # once: of millions of files it takes minutes
    if any(name.endswith(".tar") and not is_hidden(name) for name in files if "/" not in name):
        return ShardSource(f"{url.rstrip('/')}/*.tar")
    return FolderSource(url, files)


def read_address(address: Address) -> bytes:
    """The encoded image there, without its source. Raises OSError."""
    path, offset, size = address
    if offset is None:
        return read_all(path)
    return _blobs(path).read(offset) if size is None else read_range(path, offset, size)


@functools.cache
def _blobs(path: str) -> Blobs:
    return Blobs(path)


def key(sample_id: str) -> str:
    """A sample's file name without folders and extension: `a/b.JPEG`, `shard/a/b` and a shard's
    second image of a sample, `shard/a/b [.png]`, are all `b`."""
    name = re.sub(r" \[\.[^]]*\]$", "", sample_id.rpartition("/")[2])
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in EXTENSIONS else name  # ids of manifests may have any dots
