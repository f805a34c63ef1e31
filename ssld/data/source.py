"""What a source of images is, what it left out, and a subset of it; `ssld/data/sources.py` opens
them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ssld.data.decode import Unreadable, image_size
from ssld.data.sampling import permutation
from ssld.data.storage import Address, read_all

NAMED_KINDS = 8
"""Kinds that are named; of more the rest is counted together."""
MAX_LOOK_BYTES = 20_000_000
"""A larger file of an unknown ending is not looked into."""

HIDDEN = "hidden"
OUTSIDE_UTF8 = "with a name that is not UTF-8"


@dataclass
class Account:
    """Files that are no images of the source, by kind, and the first of each kind."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    """What else is to be said, and of how many: labels found so, links that were followed."""
    folder: str | None = None
    """A local folder where the examples lie, to look into those of unknown endings."""

    def leave(self, kind: str, name: str, count: int = 1) -> None:
        """Note `count` files of a kind, of which `name` is one."""
        self.counts[kind] += count
        self.examples.setdefault(kind, name)

    def note(self, text: str, name: str, count: int = 1) -> None:
        """Note something else of `count` files or labels, of which `name` is one."""
        self.notes[text] += count
        self.examples.setdefault(text, name)

    def leave_other(self, name: str) -> None:
        """Note a file whose ending is not an image's."""
        self.leave(ending(name), name)

    def add(self, other: Account) -> None:
        """Take in what another part of the source left out."""
        for kind, count in other.counts.items():
            self.leave(kind, other.examples[kind], count)
        for text, count in other.notes.items():
            self.note(text, other.examples[text], count)

    def left_out(self) -> str:
        """`3 .txt (a/notes.txt), 1 hidden (.x)`; empty where nothing was left out."""
        kinds = self.counts.most_common()
        parts = [
            f"{count:,} {kind} ({self.examples[kind]}{self._inside(kind)})"
            for kind, count in kinds[:NAMED_KINDS]
        ]
        if kinds[NAMED_KINDS:]:
            rest = sum(count for _, count in kinds[NAMED_KINDS:])
            parts.append(f"{rest:,} of {len(kinds) - NAMED_KINDS} other kinds")
        return ", ".join(parts)

    def _inside(self, kind: str) -> str:
        """What is to be said of a file that is an image in spite of its ending."""
        if self.folder is None or not (kind.startswith(".") or kind == ending("")):
            return ""
        file = os.path.join(self.folder, self.examples[kind])
        try:
            if os.path.getsize(file) > MAX_LOOK_BYTES or not os.path.isfile(file):
                return ""
            image_size(read_all(file))
        except (OSError, Unreadable):
            return ""
        return ", an image by its content: rename such files"


def ending(name: str) -> str:
    """`.txt`, in small letters, of a file's name."""
    return os.path.splitext(name)[1].lower() or "without an ending"


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

    def listed(self, rows: np.ndarray) -> tuple[list[str], list[int | None]]:
        """Ids and sizes (None where unknown) of `rows`, int64 [n], at once."""
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

    def listed(self, rows: np.ndarray) -> tuple[list[str], list[int | None]]:
        return self.source.listed(self._indices(rows))


def hold_out(sources: list[Source], wanted: int) -> tuple[list[Source], list[Source]]:
    """Set about `wanted` evenly spread images aside, from each source by its size.

    Returns:
        the rest of each source, and what was set aside (empty where the sources are too small).
    """
    kept, held = [], []
    chosen = evenly_spread([*map(len, sources)], wanted, IMAGES_PER_HELD_OUT)
    for source, rows in zip(sources, chosen, strict=True):
        if len(rows):
            kept.append(Subset(source, rows, keep=False))
            held.append(Subset(source, rows, keep=True))
        else:
            kept.append(source)
    return kept, held


def evenly_spread(sizes: Sequence[int], wanted: int, one_in: int) -> list[np.ndarray]:
    """About `wanted` rows of sources of these sizes, of each by its size and at most one in
    `one_in`: ascending, int64 [n]."""
    total, before, chosen = sum(sizes), 0, []
    for size in sizes:
        end = before + size  # rounded where it ends, many small sources have their share
        share = round(wanted * end / total) - round(wanted * before / total)
        count, before = min(share, size // one_in), end
        chosen.append((2 * np.arange(count) + 1) * size // (2 * max(1, count)))
    return chosen


def share_of(sources: list[Source], share: float) -> list[Source]:
    """That share of each source, at random, the same for every seed and part of any larger one."""
    if share == 1:
        return sources
    chosen = [
        np.sort(permutation(len(source), "share")[: max(1, round(share * len(source)))])
        for source in sources
    ]
    return [Subset(source, rows, keep=True) for source, rows in zip(sources, chosen, strict=True)]
