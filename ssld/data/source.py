"""What a source of images is; `ssld/data/sources.py` opens them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pyarrow as pa

from ssld.data.account import Account
from ssld.data.storage import Address


class Images(Protocol):
    """What a run must know of images, annotated ones included."""

    path: str

    def __len__(self) -> int: ...

    def sample_id(self, i: int) -> str:
        """A name that does not depend on where the set lies; it decides the views."""
        ...

    def location(self, i: int) -> str:
        """Where the image is, for messages."""
        ...

    def size(self, i: int) -> int | None:
        """Bytes of the encoded image, where the source knows them without reading it."""
        ...


class Source(Images, Protocol):
    """Images by number. Must pickle cheaply: loader processes get a copy."""

    class_names: list[str] | None
    """Names of classes, where labels are names: in the source's own order where it states one, else
    sorted (as numbers, where all are)."""

    @property
    def account(self) -> Account:
        """What it left out."""
        ...

    def address(self, i: int) -> Address:
        """Where the image's bytes lie, for manifests; see `ManifestSource`."""
        ...

    def label(self, i: int) -> str | int | None:
        """Class name, class number, or None for an unlabeled image."""
        ...

    def labeled(self) -> np.ndarray:
        """bool [n]: whether each image has a label."""
        ...

    def listed(self, rows: np.ndarray) -> tuple[pa.Array, pa.Array]:
        """Ids and sizes (int64, null where unknown) of `rows`, int64 [n], at once."""
        ...

    def read(self, i: int) -> bytes:
        """The encoded image. Raises OSError, Unreadable when it is not what it was at the start."""
        ...


class Indirect:
    """The part of a `Source` that asks the source in which an image really is."""

    def _place(self, i: int) -> tuple[Source, int]:
        """Where image i is: the source, and its number there."""
        raise NotImplementedError

    def sample_id(self, i: int) -> str:
        source, row = self._place(i)
        return source.sample_id(row)

    def location(self, i: int) -> str:
        source, row = self._place(i)
        return source.location(row)

    def address(self, i: int) -> Address:
        source, row = self._place(i)
        return source.address(row)

    def label(self, i: int) -> str | int | None:
        source, row = self._place(i)
        return source.label(row)

    def size(self, i: int) -> int | None:
        source, row = self._place(i)
        return source.size(row)

    def read(self, i: int) -> bytes:
        source, row = self._place(i)
        return source.read(row)
