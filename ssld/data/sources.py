"""Where images come from: a folder, a Parquet manifest or tar shards, chosen by what a path is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

from ssld.data.folder import FolderSource
from ssld.data.manifest import ManifestSource
from ssld.data.shards import ShardSource
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
    folder of them); manifests and shards may be remote (any fsspec URL).

    Raises:
        InputError: it does not exist, is empty, or is none of these.
    """
    if path.endswith(".parquet"):
        return ManifestSource(path)
    if path.endswith(".tar"):
        return ShardSource(path)
    if re.match(r"^\w+://", path):
        raise InputError(f"{path}: a remote source is a .parquet manifest or .tar shards")
    folder = Path(path)
    if not folder.exists():
        raise InputError(f"{path}: no such file or folder; check the path")
    if not folder.is_dir():
        raise InputError(f"{path}: not a folder, a .parquet manifest or .tar shards")
    if any(folder.glob("*.tar")):
        return ShardSource(str(folder / "*.tar"))
    return FolderSource(path)
