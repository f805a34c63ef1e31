"""Stage `index`: every file of every set, its hashes, size, mode and whether it can be read; and
which are exact duplicates: the very same file or decoded pixels.

Candidates are joined by the first 8 bytes of a hash, plain integers that numpy sorts and searches
by the million, and compared by all 32.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ssld.common.errors import InputError, one_line
from ssld.curate import tables
from ssld.curate.context import Part, Work, batches, key
from ssld.curate.sets.images import ImageSet, Shard, ShardTable
from ssld.data.decode import Unreadable, alpha_of, decode, stored_as
from ssld.data.sources import read_address
from ssld.data.storage import Address

VERSION = 2
"""Of what a row says: another one makes the index anew."""

MEASURED = ("sha256", "pixel_sha256", "bytes", "width", "height", "mode", "orientation", "reason")


def measure(data: bytes) -> tuple:
    """The columns `MEASURED` of an encoded image.

    The pixel hash is of height, width, upright RGB pixels and, unless all are opaque, their alpha,
    so that a file that was stored anew without loss, or with other metadata, has the same one.
    Networks see no alpha; but drawings whose RGB is all black are not the same drawing.
    """
    digest = hashlib.sha256(data).digest()
    try:
        pixels, alpha = decode(data), alpha_of(data)
        mode, orientation = stored_as(data)
    except Unreadable as error:
        return digest, None, len(data), None, None, None, None, str(error)
    height, width = pixels.shape[:2]
    of_pixels = hashlib.sha256(f"{height} {width} ".encode())
    of_pixels.update(pixels.data)
    if alpha is not None:
        of_pixels.update(alpha.data)
    return digest, of_pixels.digest(), len(data), width, height, mode, orientation, None


def measure_all(addresses: Sequence[Address]) -> list[tuple]:
    """The job of a worker: `measure` for each; where a file is not to be had, `reason` says why."""
    measured = []
    for address in addresses:
        try:
            measured.append(measure(read_address(address)))
        except (OSError, Unreadable) as error:
            measured.append((*[None] * (len(MEASURED) - 1), one_line(error)))
    return measured


class Index(ShardTable):
    """The index of one set, shard by shard."""

    def __init__(self, work: Work, images: ImageSet) -> None:
        keys = [
            key(VERSION, images.fingerprint(shard), shard.source, shard.first)
            for shard in images.shards
        ]
        super().__init__(images, work.out / "index", f"{images.name}-", keys)

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of the whole set."""
        return pa.concat_tables([table for _, table in self.read([name])])[name]

    def readable(self) -> np.ndarray:
        """bool [n]."""
        return self.column("reason").is_null().to_numpy()

    def tie_breakers(self, name: str = "sha256") -> np.ndarray:
        """uint64 [n]: the first 8 bytes of a hash, 0 where there is none. Two of 14 M different
        files share them with a probability of 5e-6."""
        return np.concatenate([heads(table[name]) for _, table in self.read([name])])

    def locations(self, rows: np.ndarray) -> dict[int, str]:
        """Row -> location, for rising rows, int64 [n]."""
        names = self.at(rows, ["location"])["location"].to_pylist()
        return dict(zip(rows.tolist(), names, strict=True))


class TeacherScores(ShardTable):
    """The teacher scores of the pool, shard by shard."""

    def __init__(self, out: Path, index: Index, scorer_key: str) -> None:
        keys = [key(scorer_key, each) for each in index.keys]
        super().__init__(index.images, out / "scores", "", keys)

    def embeddings(self, shard: Shard) -> np.ndarray:
        """float16 [rows of the shard, d]; NaN where a file cannot be read."""
        whole = self.table(shard, ["embedding"])["embedding"].combine_chunks()
        readable = whole.is_valid().to_numpy(zero_copy_only=False)
        values = whole.drop_null().flatten().to_numpy().reshape(max(1, readable.sum()), -1)
        embeddings = np.full((len(whole), values.shape[1]), np.nan, np.float16)
        embeddings[readable] = values[: readable.sum()]
        return embeddings


def heads(hashes: pa.ChunkedArray) -> np.ndarray:
    """uint64 [n]: the first 8 bytes of each sha256, 0 for null."""
    parts = [np.empty(0, np.uint64)]
    for chunk in hashes.chunks:
        raw = np.frombuffer(chunk.buffers()[1], np.uint8).reshape(-1, 32)  # [all of its buffer, 32]
        raw = np.ascontiguousarray(raw[chunk.offset : chunk.offset + len(chunk), :8])
        valid = chunk.is_valid().to_numpy(zero_copy_only=False)
        parts.append(np.where(valid, raw.view(">u8")[:, 0].astype(np.uint64), 0))
    return np.concatenate(parts)


def build(work: Work, images: ImageSet) -> Index:
    """Index what is not indexed yet.

    Raises:
        InputError: more of a source cannot be read than `max_unreadable` allows.
    """
    index = Index(work, images)

    def measured(parts: list[Part[range]]) -> Iterator[pa.Table]:
        pieces = batches(parts)
        items = ([images.address(row) for row in rows] for rows in pieces)
        for rows, values in zip(pieces, work.ordered(measure_all, items), strict=True):
            yield _table(images, rows, values)

    work.fill(f"index {images.name}", index.parts(), measured, tables.writer(tables.INDEX))
    if work.main:
        index.forget_others()
    _check(work, index)
    return index


def reader(out: Path) -> Callable[[str], bytes]:
    """Reads an image of a finished index by its location. Raises OSError."""

    @cache
    def index() -> pa.Table | None:
        return tables.rows(out / "index", ["location", *Address._fields])

    @cache
    def address(location: str) -> Address:
        table = index()
        row = -1 if table is None else pc.index(table["location"], location).as_py()
        if table is None or row < 0:
            raise FileNotFoundError(f"{location} is not in the index")
        return Address(*(table[name][row].as_py() for name in Address._fields))

    return lambda location: read_address(address(location))


def _table(images: ImageSet, rows: Sequence[int], measured: list[tuple]) -> pa.Table:
    addresses = [images.address(row) for row in rows]
    columns = {
        "set": [images.name] * len(rows),
        "source": [images.place(row)[0] for row in rows],
        "row": list(rows),
        "sample_id": [images.sample_id(row) for row in rows],
        "location": [images.location(row) for row in rows],
        **dict(zip(Address._fields, zip(*addresses, strict=True), strict=True)),
        **dict(zip(MEASURED, zip(*measured, strict=True), strict=True)),
    }
    return pa.table(columns, tables.INDEX)


def _check(work: Work, index: Index) -> None:
    """Raises InputError: ids that are not unique, or too many unreadable files."""
    name = index.images.name
    ids = index.column("sample_id")
    if len(ids.unique()) < len(ids):
        again = Counter(ids.to_pylist()).most_common(1)[0][0]
        raise InputError(
            f"{name}: two images have the id {again!r}; give shards names of their own, or list "
            "each image once"
        )
    bad, example = Counter[int](), {}
    for shard, table in index.read(["location", "reason"]):
        unreadable = table.filter(table["reason"].is_valid())
        bad[shard.source] += len(unreadable)
        for row in unreadable.slice(0, 1).to_pylist():
            example.setdefault(shard.source, f"{row['location']} ({row['reason']})")
    for number, source in enumerate(index.images.sources):
        count, where = bad[number], f"{name} {source.path}"
        if count:
            work.say(f"{where}: {count} of {len(source)} cannot be read, {example[number]} for one")
        if count > work.config.max_unreadable * len(source):
            raise InputError(
                f"{where}: {count} of {len(source)} images cannot be read, more than "
                f"max_unreadable allows ({work.config.max_unreadable:.1%}), one of them "
                f"{example[number]}; mend the source or raise the limit"
            )


HASHES = {"sha256": "bytes", "pixel_sha256": "pixels"}
"""Column of the index -> what it says is equal."""


@lru_cache(4)  # of finished indexes, which several stages ask about
def exact_duplicates(index: Index, other: Index) -> dict[int, tuple[int, str]]:
    """Row of `index` -> (row of `other`, bytes or pixels), for images that are in both."""
    twins: dict[int, tuple[int, str]] = {}
    for name, what in HASHES.items():
        hashes = other.column(name)
        known = heads(hashes)
        order = np.argsort(known, kind="stable")
        known = known[order]
        for shard, table in index.read([name]):
            mine = heads(table[name])
            at = np.minimum(np.searchsorted(known, mine), len(known) - 1)  # [rows of the shard]
            for i in np.flatnonzero((known[at] == mine) & (mine != 0)).tolist():
                row = int(order[at[i]])
                if hashes[row].as_py() == table[name][i].as_py():
                    twins.setdefault(shard.first + i, (row, what))
    return dict(sorted(twins.items()))


def exact_copies(index: Index) -> dict[int, int]:
    """Row -> row of the same picture that stands for it, for all but that one of each group.

    It is the one with the least sha256, of equal files the one with the least sample id, so that
    neither the order of files nor where shards end decides.
    """
    pixels = index.tie_breakers("pixel_sha256")
    _, group, size = np.unique(pixels, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero((size[group] > 1) & (pixels != 0))
    columns = index.at(repeated, ["pixel_sha256", "sha256", "sample_id"]).to_pydict().values()
    groups: dict[bytes, list[tuple[bytes, str, int]]] = {}
    for row, picture, *rank in zip(repeated.tolist(), *columns, strict=True):
        groups.setdefault(picture, []).append((*rank, row))
    stands_for = {}
    for members in groups.values():
        first, *others = sorted(members)
        stands_for |= {row: first[2] for _, _, row in others}
    return stands_for


def rows_with_keys(index: Index, keys: set[str], key_of: Callable[[str], str]) -> list[int]:
    """Rows whose sample id has one of `keys`."""
    return [
        shard.first + i
        for shard, table in index.read(["sample_id"])
        for i, sample_id in enumerate(table["sample_id"].to_pylist())
        if key_of(sample_id) in keys
    ]
