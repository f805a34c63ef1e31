"""The images of a set (the pool, the reference set, labeled ones) by one running number, in shards
of work, and tables that have a file for each shard."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssld.common.errors import InputError
from ssld.curate.context import Part
from ssld.data.source import Source
from ssld.data.sources import open_source
from ssld.data.storage import Address, is_remote


@dataclass(frozen=True)
class Shard:
    """Rows [first, last) of a set, all from one source: the unit that is done or not."""

    number: int
    source: int
    first: int
    last: int

    @property
    def rows(self) -> range:
        return range(self.first, self.last)


class ImageSet:
    """The sources of one setting, one after the other.

    Args:
        name: the setting: gallery, protected or labeled.
        paths: its sources, or what is opened of them.
        shard_size: images per shard, at most.

    Raises:
        InputError: a source that cannot be opened or is empty.
    """

    def __init__(self, name: str, paths: Sequence[str | Source], shard_size: int) -> None:
        self.name = name
        self.sources = [_open(name, x) if isinstance(x, str) else x for x in paths]
        self._ends = np.cumsum([0, *map(len, self.sources)])
        cuts = [
            (number, first, min(first + shard_size, end))
            for number, (begin, end) in enumerate(zip(self._ends, self._ends[1:], strict=False))
            for first in range(begin, end, shard_size)
        ]
        self.shards = [Shard(i, *map(int, cut)) for i, cut in enumerate(cuts)]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def by_shard(self, rows: np.ndarray) -> Iterator[tuple[Shard, np.ndarray]]:
        """Rising `rows`, int64, shard by shard; shards without any are left out."""
        ends = np.searchsorted(rows, [shard.last for shard in self.shards])
        for number in np.flatnonzero(np.diff(ends, prepend=0)).tolist():
            begin = ends[number - 1] if number else 0
            yield self.shards[number], rows[begin : ends[number]]

    @cached_property
    def _prefixes(self) -> list[str]:
        """Before sample ids, so that no two sources share one."""
        if len(self.sources) == 1:
            return [""]
        names = [Path(source.path).name for source in self.sources]
        counts = Counter(names)
        return [
            f"{name}/" if counts[name] == 1 else f"{number}-{name}/"
            for number, name in enumerate(names)
        ]

    def place(self, row: int) -> tuple[int, int]:
        """Source number and number within the source."""
        source = int(np.searchsorted(self._ends, row, side="right")) - 1
        return source, row - int(self._ends[source])

    def sample_id(self, row: int) -> str:
        """Unique within the set; does not depend on where the set lies."""
        source, i = self.place(row)
        return self._prefixes[source] + self.sources[source].sample_id(i)

    def location(self, row: int) -> str:
        source, i = self.place(row)
        return self.sources[source].location(i)

    def address(self, row: int) -> Address:
        source, i = self.place(row)
        return self.sources[source].address(i)

    def fingerprint(self, shard: Shard) -> str:
        """sha256 of names, sizes and modification times: what changes when an image does."""
        digest, seen = hashlib.sha256(), {}
        for row in shard.rows:
            address = self.address(row)
            if address.path not in seen:
                seen = {address.path: _stamp(address.path)}  # neighbours share a tar
            source, i = self.place(row)
            size = self.sources[source].size(i)
            words = (self.sample_id(row), *address, size, seen[address.path])
            digest.update(repr(words).encode())
        return digest.hexdigest()


def _open(name: str, path: str) -> Source:
    try:
        return open_source(path)
    except InputError as error:
        protects = "; an empty protected set would protect nothing" if name == "protected" else ""
        raise InputError(f"{name}: {error}{protects}") from error


def _stamp(path: str) -> str:
    """Size and time of a local file. A remote one costs a request: its listed size must do."""
    if is_remote(path):
        return ""
    try:
        status = os.stat(path)
    except OSError as error:
        return str(error.strerror)
    return f"{status.st_size}/{status.st_mtime_ns}"


class ShardTable:
    """A table about a set that has a Parquet file for each of its shards.

    Args:
        prefix: of the names of its files.
        keys: for each shard a digest of all that its rows depend on: part of the file's name, so
            that a file that is there is right.
    """

    def __init__(self, images: ImageSet, folder: Path, prefix: str, keys: list[str]) -> None:
        self.images, self.folder, self.prefix, self.keys = images, folder, prefix, keys

    def path(self, shard: Shard) -> Path:
        return self.folder / f"{self.prefix}{shard.number:06d}-{self.keys[shard.number]}.parquet"

    def parts(self) -> list[Part[range]]:
        """The work of writing it."""
        return [Part(self.path(shard), shard.rows) for shard in self.images.shards]

    def table(self, shard: Shard, columns: list[str]) -> pa.Table:
        """The rows of one shard."""
        return pq.read_table(self.path(shard), columns=columns)

    def read(self, columns: list[str]) -> Iterator[tuple[Shard, pa.Table]]:
        """Each shard's rows."""
        for shard in self.images.shards:
            yield shard, self.table(shard, columns)

    def at(self, rows: np.ndarray, columns: list[str]) -> pa.Table:
        """Rising `rows`, int64 [n], of the whole table."""
        parts = [
            self.table(shard, columns).take(pa.array(here - shard.first))
            for shard, here in self.images.by_shard(rows)
        ]
        first = self.images.shards[0]
        return pa.concat_tables(parts) if parts else self.table(first, columns).slice(0, 0)

    def forget_others(self) -> None:
        """Delete parts of what the set was before, so that the folder is the table."""
        wanted = {self.path(shard) for shard in self.images.shards}
        for path in self.folder.glob(f"{self.prefix}*.parquet"):
            if path not in wanted:
                path.unlink()
