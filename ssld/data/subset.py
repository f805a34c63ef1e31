"""A subset of a source: what is held out of training, the rest, or a share of it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from ssld.data.account import Account
from ssld.data.sampling import permutation
from ssld.data.source import Indirect, Source

IMAGES_PER_HELD_OUT = 20
"""At most one image in this many is held out."""


class Subset(Indirect):
    """The `chosen` images of a source, or all but them.

    Args:
        chosen: sorted, distinct, int64 [n].
        keep: whether it is the chosen images or the rest.
    """

    def __init__(self, source: Source, chosen: np.ndarray, *, keep: bool) -> None:
        self.source = source
        self.path = source.path
        self.class_names = source.class_names
        self.keep = keep
        # The i-th of the rest lies behind as many chosen ones as have at most i of the rest before
        # them; so the millions that are kept need no list.
        self._table = chosen if keep else chosen - np.arange(len(chosen))
        self._length = len(chosen) if keep else len(source) - len(chosen)

    @property
    def account(self) -> Account:
        return self.source.account

    def _indices(self, rows: np.ndarray) -> np.ndarray:
        """Which images of the source these are, int64 [n]."""
        if self.keep:
            return self._table[rows]
        return rows + np.searchsorted(self._table, rows, side="right")

    def _place(self, i: int) -> tuple[Source, int]:
        return self.source, int(self._indices(np.array(i)))

    def __len__(self) -> int:
        return self._length

    def labeled(self) -> np.ndarray:
        return self.source.labeled()[self._indices(np.arange(len(self)))]

    def listed(self, rows: np.ndarray) -> tuple[pa.Array, pa.Array]:
        return self.source.listed(self._indices(rows))


def hold_out(sources: list[Source], wanted: int) -> tuple[list[Source], list[Source]]:
    """Set about `wanted` evenly spread images aside, from each source by its size.

    Returns:
        the rest of each source, and what was set aside (empty where the sources are too small).
    """
    total, before = sum(map(len, sources)), 0
    kept, held = [], []
    for source in sources:
        end = before + len(source)  # rounded where it ends, many small sources have their share
        share = round(wanted * end / total) - round(wanted * before / total)
        count, before = min(share, len(source) // IMAGES_PER_HELD_OUT), end
        if count == 0:
            kept.append(source)
            continue
        chosen = (2 * np.arange(count) + 1) * len(source) // (2 * count)
        kept.append(Subset(source, chosen, keep=False))
        held.append(Subset(source, chosen, keep=True))
    return kept, held


def share_of(sources: list[Source], share: float) -> list[Source]:
    """That share of each source, at random, the same for every seed and part of any larger one."""
    if share == 1:
        return sources
    chosen = [
        np.sort(permutation(len(source), "share")[: max(1, round(share * len(source)))])
        for source in sources
    ]
    return [Subset(source, rows, keep=True) for source, rows in zip(sources, chosen, strict=True)]
