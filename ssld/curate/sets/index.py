"""Stage `index`: every file of every set, its hashes, size, mode and whether it can be read."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ssld.common.errors import InputError, one_line
from ssld.curate import tables
from ssld.curate.context import Part, Work
from ssld.curate.sets.images import ImageSet, Shard, batched, key
from ssld.curate.workers import BATCH
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
    """`measure` for each; a file that is not to be had says why in `reason`."""
    found = []
    for address in addresses:
        try:
            found.append(measure(read_address(address)))
        except (OSError, Unreadable) as error:
            reason = one_line(error)
            found.append((None, None, None, None, None, None, None, reason))
    return found


class Index:
    """The finished index of one set, shard by shard."""

    def __init__(self, work: Work, images: ImageSet) -> None:
        self.work, self.images = work, images
        self.folder = work.out / "index"
        self.keys = [
            key(VERSION, images.fingerprint(shard), shard.source, shard.first)
            for shard in images.shards
        ]

    def path(self, shard: Shard) -> Path:
        name = f"{self.images.name}-{shard.number:06d}-{self.keys[shard.number]}"
        return self.folder / f"{name}.parquet"

    def read(self, columns: list[str]) -> Iterator[tuple[Shard, pa.Table]]:
        """Each shard's rows."""
        for shard in self.images.shards:
            yield shard, self.table(shard, columns)

    def table(self, shard: Shard, columns: list[str]) -> pa.Table:
        """The rows of one shard."""
        return pq.read_table(self.path(shard), columns=columns)

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of the whole set."""
        return pa.concat_tables([table for _, table in self.read([name])])[name]

    def readable(self) -> np.ndarray:
        """bool [n]."""
        return self.column("reason").is_null().to_numpy()

    def ties(self, name: str = "sha256") -> np.ndarray:
        """uint64 [n]: the first 8 bytes of a hash, 0 where there is none. Two of 14 M different
        files share them with a probability of 5e-6."""
        return np.concatenate([heads(table[name]) for _, table in self.read([name])])


def heads(hashes: pa.ChunkedArray) -> np.ndarray:
    """uint64 [n]: the first 8 bytes of each sha256, 0 for null."""
    parts = [np.empty(0, np.uint64)]
    for chunk in hashes.chunks:
        raw = np.frombuffer(chunk.buffers()[1], np.uint8).reshape(-1, 32)
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
    missing = [s for s in work.mine(images.shards) if not index.path(s).is_file()]
    parts = [Part(index.path(shard), len(shard.rows)) for shard in missing]
    pieces = [rows for shard in missing for rows in batched(shard.rows, BATCH)]
    items = ([images.address(row) for row in rows] for rows in pieces)
    measured = zip(pieces, work.ordered(measure_all, items), strict=True)
    found = ((len(rows), _table(images, rows, values)) for rows, values in measured)
    work.write(f"index {images.name}", parts, tables.INDEX, found)
    work.processes.wait()
    _forget(work, index)
    _check(work, index)
    return index


def reader(out: Path) -> Callable[[str], bytes]:
    """Reads an image of a finished index by its location. Raises OSError."""
    table = tables.read(out / "index", ["location", "path", "offset", "size"])
    rows: dict[str, int] = {}

    def read(location: str) -> bytes:
        row = rows.setdefault(location, pc.index(table["location"], location).as_py())
        if row < 0:
            raise FileNotFoundError(f"{location} is not in the index")
        return read_address(Address(*(table[name][row].as_py() for name in Address._fields)))

    return read


def _table(images: ImageSet, rows: Sequence[int], measured: list[tuple]) -> pa.Table:
    addresses = [images.address(row) for row in rows]
    columns = {
        "set": [images.name] * len(rows),
        "source": [images.place(row)[0] for row in rows],
        "row": rows,
        "sample_id": [images.sample_id(row) for row in rows],
        "location": [images.location(row) for row in rows],
        "path": [address.path for address in addresses],
        "offset": [address.offset for address in addresses],
        "size": [address.size for address in addresses],
        **dict(zip(MEASURED, zip(*measured, strict=True), strict=True)),
    }
    return pa.table({name: list(values) for name, values in columns.items()}, tables.INDEX)


def _forget(work: Work, index: Index) -> None:
    """Delete parts of what the set was before, so that the folder is the table."""
    wanted = {index.path(shard) for shard in index.images.shards}
    if work.main:
        for path in index.folder.glob(f"{index.images.name}-*.parquet"):
            if path not in wanted:
                path.unlink()


def _check(work: Work, index: Index) -> None:
    ids = index.column("sample_id")
    if len(ids.unique()) < len(ids):
        again = Counter(ids.to_pylist()).most_common(1)[0][0]
        raise InputError(
            f"{index.images.name}: two images have the id {again!r}; give shards names of their "
            "own, or list each image once"
        )
    bad, last = Counter(), {}
    for shard, table in index.read(["location", "reason"]):
        unreadable = table.filter(table["reason"].is_valid())
        bad[shard.source] += len(unreadable)
        for row in unreadable.slice(0, 1).to_pylist():
            last.setdefault(shard.source, f"{row['location']} ({row['reason']})")
    for number, source in enumerate(index.images.sources):
        if bad[number]:
            said = f"{bad[number]} of {len(source)} cannot be read, {last[number]} for one"
            work.say(f"{index.images.name} {source.path}: {said}")
        if bad[number] > work.config.max_unreadable * len(source):
            raise InputError(
                f"{index.images.name} {source.path}: {bad[number]} of {len(source)} images cannot "
                f"be read, more than max_unreadable allows ({work.config.max_unreadable:.1%}), one "
                f"of them {last[number]}; mend the source or raise the limit"
            )
