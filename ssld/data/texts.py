"""Millions of names without an object for each: loader processes share the memory, and the package
that tables need (pyarrow) is not needed for a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


class Texts:
    """Texts by number, kept as UTF-8 one after the other."""

    def __init__(self, texts: Sequence[str]) -> None:
        encoded = [text.encode() for text in texts]
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)  # [n + 1]
        self._bytes = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i: int) -> str:
        i = range(len(self))[i]
        return self._bytes[self._ends[i] : self._ends[i + 1]].decode()

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def take(self, rows: np.ndarray) -> list[str]:
        """Those of `rows`, int64 [n]."""
        starts, ends = self._ends[rows].tolist(), self._ends[rows + 1].tolist()
        content = self._bytes
        return [content[a:b].decode() for a, b in zip(starts, ends, strict=True)]

    def have(self, letter: str) -> np.ndarray:
        """bool [n]: whether each has this letter of ASCII."""
        found = np.zeros(len(self), bool)
        places = np.flatnonzero(np.frombuffer(self._bytes, np.uint8) == ord(letter))
        found[np.searchsorted(self._ends, places, side="right") - 1] = True
        return found
