"""The images that are to be annotated, and those that must not be: stage `index`.

Everything is read once before the first image goes through the network: what cannot be read, what
is held out, what has human annotations already. Two images are the same where their files or their
pixels are (`ssld.curate.sets.index.measure`); `ssld curate` finds near-duplicates, too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
from tqdm import tqdm

from downstream.pseudo_label.config import STATE, PseudoLabelConfig
from downstream.pseudo_label.shards import Shards, Work
from ssld.common.errors import InputError
from ssld.common.files import write_atomically
from ssld.curate.context import key
from ssld.curate.sets.images import ImageSet
from ssld.curate.sets.index import measure_all
from ssld.data.decode import Unreadable, decode
from ssld.data.sources import read_address
from ssld.data.storage import Address

VERSION = 1
"""Of what a row of the index says."""
INDEX = pa.schema(
    {
        "sha256": pa.binary(),
        "pixel_sha256": pa.binary(),
        "width": pa.int32(),
        "height": pa.int32(),
        "reason": pa.string(),
    }
)
HELD_OUT = "held_out.txt"
SHOWN = 6
"""Images that a message names."""
NAME_BYTES = 200
"""Of a name's end that are kept where it is longer; Linux allows 255."""
AHEAD = 2
"""Images per thread that are read before it is their turn."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Reader:
    """Threads that read ahead."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.pool = ThreadPoolExecutor(workers) if workers else None

    def map(self, job: Any, items: Sequence[Item]) -> Iterator[tuple[Item, Any]]:
        """(item, `job` of it) in order, a few of them under way at once."""
        if self.pool is None:
            yield from ((item, job(item)) for item in items)
            return
        ahead, waiting = self.workers * AHEAD, []
        for i, item in enumerate(items):
            while len(waiting) < min(ahead, len(items) - i):
                waiting.append(self.pool.submit(job, items[i + len(waiting)]))
            yield item, waiting.pop(0).result()


def decoded(address: Address, file_sum: bytes | None = None) -> Any:
    """uint8 [h, w, 3], or what is wrong with an image.

    Args:
        file_sum: sha256 that the file has to have.
    """
    try:
        data = read_address(address)
        if file_sum is not None and hashlib.sha256(data).digest() != file_sum:
            return Unreadable("it was changed")
        return decode(data)
    except (OSError, Unreadable) as error:
        return error


class Index:
    """What is known of each image of a set, by its number."""

    def __init__(self, images: ImageSet, shards: Shards) -> None:
        self.images = images
        table = pa.concat_tables(shards.tables()) if images.shards else INDEX.empty_table()
        self.reason: list[str | None] = table["reason"].to_pylist()
        """Why it cannot be read."""
        self.size = list(zip(table["height"].to_pylist(), table["width"].to_pylist(), strict=True))
        """Height and width in px."""
        self._sums = [table[name].combine_chunks() for name in ("sha256", "pixel_sha256")]
        self._ids = [images.sample_id(row) for row in range(len(images))]

    def __len__(self) -> int:
        return len(self.reason)

    def sums(self, row: int) -> set[bytes]:
        """sha256 of the file, and of its pixels, as far as they are to be had."""
        return {x.as_py() for x in (column[row] for column in self._sums) if x.is_valid}

    def file_sum(self, row: int) -> bytes | None:
        """sha256 of the file."""
        return self._sums[0][row].as_py()

    def pixel_sum(self, row: int) -> bytes | None:
        """sha256 of the pixels, see `measure`."""
        return self._sums[1][row].as_py()

    @property
    def digest(self) -> str:
        """Of the names and files of all images."""
        rows = ((self._ids[row], self.file_sum(row)) for row in range(len(self)))
        return key(*rows)

    def sample_id(self, row: int) -> str:
        return self._ids[row]


def relative_names(ids: Iterable[str]) -> list[str]:
    """A relative path for each id, which may be anything: absolute, too long, `../x`. No two differ
    in case alone, and with the ending .png none is a folder of another."""
    names, taken = [], set[str]()
    for sample_id in ids:
        parts = [
            os.fsdecode(os.fsencode(part)[-NAME_BYTES:])
            for part in sample_id.replace("\0", "").split("/")
            if part.strip() not in ("", ".", "..")
        ] or ["image"]
        folders = [f"{part}~" if part.lower().endswith(".png") else part for part in parts[:-1]]
        stem, number = "/".join([*folders, parts[-1]]), 2
        name = stem
        while name.casefold() in taken:
            name, number = f"{stem}~{number}", number + 1
        taken.add(name.casefold())
        names.append(name)
    return names


def build_index(work: Work, images: ImageSet, reader: Reader) -> Index:
    """Measure every image that is not measured yet."""
    keys = [key(VERSION, images.fingerprint(shard)) for shard in images.shards]
    shards = Shards(work.out / "index", images.name, keys)

    def make(number: int, bar: tqdm) -> pa.Table:
        rows = images.shards[number].rows
        addresses = [[images.address(row)] for row in rows]
        measured = []
        for _, (values,) in reader.map(measure_all, addresses):
            digest, pixels, _, width, height, _, _, reason = values
            measured.append((digest, pixels, width, height, reason))
            bar.update()
        columns = dict(zip(INDEX.names, zip(*measured, strict=True), strict=True))
        return pa.table({name: list(column) for name, column in columns.items()}, INDEX)

    work.fill(f"index {images.name}", shards, [len(x.rows) for x in images.shards], make)
    return Index(images, shards)


@dataclass(frozen=True)
class Chosen:
    """Which images are annotated."""

    rows: list[int]
    unreadable: list[int]
    labeled: list[int]
    """Left out: they have human annotations."""
    twice: list[int]
    """Left out: the same picture is there before."""


def choose(
    config: PseudoLabelConfig, work: Work, images: Index, labeled: Index | None, val: Index | None
) -> Chosen:
    """
    Raises:
        InputError: two images have one id; too many cannot be read; some are held out; none is
            left.
    """
    _check_ids(images)
    unreadable = _unreadable(config, work, images)
    held_out = _among(images, val)
    if val and held_out:
        _refuse_held_out(work, images, val, held_out)
    if work.main:
        (work.out / HELD_OUT).unlink(missing_ok=True)
    annotated = _among(images, labeled)
    known, seen = set(annotated), set[bytes]()
    rows, twice = [], []
    for row in range(len(images)):
        if images.reason[row] is None and row not in known:
            sums = images.sums(row)
            (rows if seen.isdisjoint(sums) else twice).append(row)
            seen |= sums
    if not rows:
        raise InputError(
            f"images: of {len(images)} images {len(known)} have human annotations and "
            f"{len(unreadable)} cannot be read, so none is left to annotate; give others"
        )
    return Chosen(rows, unreadable, list(annotated), twice)


def _among(images: Index, other: Index | None) -> dict[int, int]:
    """Rows of images that are in `other`, too, and which one there."""
    if other is None:
        return {}
    known = {x: row for row in reversed(range(len(other))) for x in other.sums(row)}
    found = {row: [known[x] for x in images.sums(row) if x in known] for row in range(len(images))}
    return {row: min(there) for row, there in found.items() if there}


def _check_ids(images: Index) -> None:
    seen: set[str] = set()
    for row in range(len(images)):
        name = images.sample_id(row)
        if name in seen:
            raise InputError(
                f"images: two images have the id {name!r}; give shards names of their own, or list "
                "each source once"
            )
        seen.add(name)


def _unreadable(config: PseudoLabelConfig, work: Work, images: Index) -> list[int]:
    """Say of how many, and list them in unreadable.jsonl."""
    bad = [row for row in range(len(images)) if images.reason[row] is not None]
    if work.main:
        _write_unreadable(work.out / "unreadable.jsonl", images, bad)
    sources = images.images.sources
    for number, source in enumerate(sources):
        mine = [row for row in bad if images.images.place(row)[0] == number]
        if not mine:
            continue
        last = f"{images.images.location(mine[0])} ({images.reason[mine[0]]})"
        if len(mine) > config.max_unreadable * len(source):
            raise InputError(
                f"{source.path}: {len(mine)} of {len(source)} images cannot be read, more than "
                f"max_unreadable allows ({config.max_unreadable:.1%}), one of them {last}; mend "
                "the source or raise the limit"
            )
        work.say(f"{source.path}: {len(mine)} of {len(source)} cannot be read, {last} for one")
    return bad


def _write_unreadable(path: Path, images: Index, rows: list[int]) -> None:
    lines = [
        {
            "sample_id": images.sample_id(row),
            "location": images.images.location(row),
            "reason": images.reason[row],
        }
        for row in rows
    ]
    if lines:
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))
    else:
        path.unlink(missing_ok=True)


def _refuse_held_out(work: Work, images: Index, val: Index, rows: dict[int, int]) -> None:
    if work.main:
        text = "".join(
            f"{images.images.location(row)}\t{val.images.location(there)}\n"
            for row, there in rows.items()
        )
        write_atomically(work.out / HELD_OUT, text)
        (work.out / STATE).unlink(missing_ok=True)  # other images may be given at once
    names = [f"{images.sample_id(row)} (is {val.sample_id(there)})" for row, there in rows.items()]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    raise InputError(
        f"images to label: {len(names)} of {len(images)} are held out for evaluation, too, the "
        f"same bytes or pixels: {', '.join(names[:SHOWN])}{more}; {work.out / HELD_OUT} lists "
        "them: take them out of one of the two"
    )
