"""Tar shards in WebDataset naming, read by random access through an index that is built once.

Files that share a name up to the first dot of its last part are one sample: `0001.jpg`, `0001.cls`
(a class number) or `0001.json` (with a `label`).

A tar in a shard is a folder of samples (ImageNet-22k is one tar of 21,841 tars): what it holds is
read right out of the shard, too.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from tqdm import tqdm

from ssld.common.errors import InputError
from ssld.common.streams import bar_output
from ssld.data.columns import texts_at
from ssld.data.source import Account
from ssld.data.storage import Address, absolute, derived, is_hidden, read_range
from ssld.data.tar_samples import SCHEMA, Samples, as_text, plain_name, resolve

pc: Any = pyarrow.compute  # whose functions are made when it is imported

ACCOUNT = b"ssld.left_out"
"""Where an index's metadata says what the shard holds besides."""
PROGRESS_BYTES = 1_000_000_000
"""Bytes of a tar above which its indexing shows progress."""
UNLABELED = -1
"""A class number that means none, as in the hub's test sets."""
ROW_GROUP = 65_536
"""Least rows that are written at once."""


class ShardSource:
    """All images of some tar files, local or remote, and of the tars inside them.

    Args:
        path: what was given: a tar, a pattern or a folder.
        shards: the tars themselves.

    Raises:
        InputError: a shard is missing, truncated, has no image or tars in tars in tars.
    """

    def __init__(self, path: str, shards: list[str]) -> None:
        self.path = path
        self.shards = shards
        tables, self.account = [], Account()
        for shard in self.shards:
            table, left = _index(shard)
            tables.append(table)
            self.account.add(left)
        self._table = pa.concat_tables(tables).combine_chunks()
        self._offsets = self._table["offset"].to_numpy()
        self._sizes = self._table["size"].to_numpy()
        self._shard = np.repeat(np.arange(len(tables), dtype=np.int32), [len(t) for t in tables])
        labels = self._table["label"].drop_null().unique().to_pylist()
        # Labels that are not all numbers are names.
        self._numeric = all(re.fullmatch(r"-?[0-9]{1,18}", label) for label in labels)
        self.class_names = None if self._numeric or not labels else sorted(labels)

    def __len__(self) -> int:
        return self._table.num_rows

    def sample_id(self, i: int) -> str:
        shard = self.shards[self._shard[i]].rpartition("/")[2].removesuffix(".tar")
        return f"{shard}/{self._table['key'][i].as_py()}"

    def location(self, i: int) -> str:
        return f"{self.shards[self._shard[i]]}:{self._table['key'][i].as_py()}"

    def address(self, i: int) -> Address:
        shard = absolute(self.shards[self._shard[i]])
        return Address(shard, int(self._offsets[i]), int(self._sizes[i]))

    def label(self, i: int) -> str | int | None:
        label = self._table["label"][i].as_py()
        if label is None or not self._numeric:
            return label
        return None if int(label) == UNLABELED else int(label)

    def labeled(self) -> np.ndarray:
        known = self._table["label"].is_valid()
        if self._numeric:
            there = pc.not_equal(self._table["label"], str(UNLABELED)).fill_null(False)
            known = pc.and_(known, there)
        return known.to_numpy()

    def size(self, i: int) -> int:
        return int(self._sizes[i])

    def listed(self, rows: np.ndarray) -> tuple[list[str], list[int | None]]:
        names = [shard.rpartition("/")[2].removesuffix(".tar") for shard in self.shards]
        keys = texts_at(self._table["key"], rows)
        ids = [f"{names[x]}/{key}" for x, key in zip(self._shard[rows].tolist(), keys, strict=True)]
        return ids, self._sizes[rows].tolist()

    def read(self, i: int) -> bytes:
        shard = self.shards[self._shard[i]]
        return read_range(shard, int(self._offsets[i]), int(self._sizes[i]))


def _index(shard: str) -> tuple[pa.Table, Account]:
    # Not members.parquet, which knew nothing of what it left out.
    file = derived(shard, "samples.parquet", lambda target: _build_index(shard, target))
    table = pq.read_table(file, schema=SCHEMA)
    left = json.loads(pq.read_metadata(file).metadata[ACCOUNT])
    return table, Account(Counter(left["counts"]), left["examples"], left["notes"])


def _build_index(shard: str, target: Path) -> None:
    account, images = Account(), 0
    try:
        opened: Any = fsspec.open(shard, "rb")
        with opened as file, pq.ParquetWriter(target, SCHEMA) as writer:
            end = file.seek(0, 2)
            with _progress(shard, end) as progress:
                for table in _grouped(_tables(file, shard, end, progress, account)):
                    writer.write_table(table)
                    images += len(table)
                progress.update(end - progress.n)
            left = {name: getattr(account, name) for name in ("counts", "examples", "notes")}
            writer.add_key_value_metadata({ACCOUNT: json.dumps(left).encode()})
    except (IsADirectoryError, PermissionError) as error:
        if error.filename is None or str(error.filename) == str(target):
            raise
        raise InputError(f"{shard}: cannot be read ({error.strerror})") from error
    if not images:
        left = account.left_out()
        raise InputError(
            f"{shard}: no image in this shard{f' (it has {left})' if left else ''}: pack it anew "
            "with some, or leave it out"
        )


def _progress(shard: str, size: int) -> tqdm:
    return tqdm(
        total=size,
        unit="B",
        unit_scale=True,
        desc=f"indexing {shard.rpartition('/')[2]}",
        disable=size <= PROGRESS_BYTES,
        **bar_output(),
    )


def _grouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of at least ROW_GROUP, the last one apart."""
    waiting, rows = [], 0
    for table in tables:
        waiting.append(table)
        rows += len(table)
        if rows >= ROW_GROUP:
            yield pa.concat_tables(waiting)
            waiting, rows = [], 0
    yield pa.concat_tables([SCHEMA.empty_table(), *waiting])


def _tables(
    file: IO[bytes], shard: str, end: int, progress: tqdm, account: Account
) -> Iterator[pa.Table]:
    """The images of each tar inside the shard, then the shard's own; `account` gets the rest."""
    own, folders = Samples(file, shard), set()
    for member in _members(file, shard, 0, end, progress):
        folder = _inner_folder(member)
        if folder is None:
            own.add(member)
            continue
        if folder in folders:
            raise InputError(f"{shard}: holds {member.name} twice; give each tar a name of its own")
        folders.add(folder)
        yield _inner_table(file, shard, member, progress, account)
    yield _finished(own, file, (0, end), account)


def _inner_table(
    file: IO[bytes], shard: str, outer: tarfile.TarInfo, progress: tqdm, account: Account
) -> pa.Table:
    where = f"{shard}: {outer.name}"
    inner = Samples(file, where, as_text(f"{_inner_folder(outer)}/"))
    start = outer.offset_data
    for member in _members(file, where, start, start + outer.size, progress):
        if _inner_folder(member) is not None:
            raise InputError(
                f"{where}: holds the tar {member.name}, and only two levels are read; unpack "
                f"{outer.name} once"
            )
        inner.add(member)
    return _finished(inner, file, (start, start + outer.size), account)


def _finished(
    samples: Samples, file: IO[bytes], span: tuple[int, int], account: Account
) -> pa.Table:
    """The table of a tar at `span` of the file, all of whose members were added."""
    if samples.links:  # few tars have any: they are read a second time
        with tqdm(disable=True) as silent:
            resolve(samples, _members(file, samples.where, *span, silent))
    table = samples.table()
    account.add(samples.account)
    return table


def _inner_folder(member: tarfile.TarInfo) -> str | None:
    """Under which name the images of a member that is a tar itself appear; None for others."""
    stem, extension = os.path.splitext(plain_name(member.name))
    if extension.lower() != ".tar" or is_hidden(stem) or not member.isfile():
        return None
    return stem


def _members(
    file: IO[bytes], where: str, start: int, end: int, progress: tqdm
) -> Iterator[tarfile.TarInfo]:
    """All but the folders in the tar at [start, end) of `file`; offsets are those in `file`.

    Raises:
        InputError: it is not a tar, damaged or truncated.
    """
    try:
        if end - start < tarfile.BLOCKSIZE:  # else the first header would be what comes after it
            raise tarfile.ReadError(f"{end - start} bytes")
        file.seek(start)
        archive = tarfile.TarFile(fileobj=file)  # begins where the file stands
        while (member := archive.next()) is not None:
            vars(archive)["members"].clear()  # it would keep millions
            progress.update(member.offset_data - progress.n)
            if member.size < 0:  # would go back and round for ever
                raise tarfile.ReadError(f"{member.name} has {member.size} bytes")
            if member.isfile() and not member.issparse():  # whose size is not that in the tar
                if member.offset_data + member.size > end:
                    raise InputError(f"{where}: ends within {member.name}; fetch it again")
            if not member.isdir():
                yield member
            if archive.offset >= end:
                return
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes it for the end
            raise tarfile.ReadError(f"bad header at byte {archive.offset - start}")
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise InputError(f"{where}: not a whole tar file ({error}); fetch it again") from error
