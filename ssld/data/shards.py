"""Tar shards in WebDataset naming, read by random access through an index that is built once.

Files that share a name up to the first dot of its last part are one sample: `0001.jpg`, `0001.cls`
(a class number) or `0001.json` (with a `label`).

A tar in a shard is a folder of samples (ImageNet-22k is one tar of 21,841 tars): what it holds is
read right out of the shard, too.
"""

from __future__ import annotations

import glob
import json
import os
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ssld.data.folder import EXTENSIONS
from ssld.data.storage import (
    Address,
    absolute,
    derived,
    is_hidden,
    is_remote,
    match_files,
    read_range,
)
from ssld.errors import InputError

SCHEMA = pa.schema(
    [("key", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("label", pa.string())]
)

LARGE = 1_000_000_000
"""Bytes of a tar above which its indexing shows progress."""
ROW_GROUP = 65_536
"""Least rows that are written at once."""


class ShardSource:
    """All images of some tar files, local or remote, and of the tars inside them.

    Args:
        path: one tar, a brace range (`x-{000..127}.tar`) or a glob.

    Raises:
        InputError: a shard is missing, truncated, has no image or tars in tars in tars.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.shards = expand(path)
        tables = [_index(shard) for shard in self.shards]
        self._table = pa.concat_tables(tables).combine_chunks()
        self._offsets = self._table["offset"].to_numpy()
        self._sizes = self._table["size"].to_numpy()
        self._shard = np.repeat(np.arange(len(tables), dtype=np.int32), [len(t) for t in tables])
        labels = self._table["label"].drop_null().unique().to_pylist()
        # Labels that are not all numbers are names.
        self._numeric = all(re.fullmatch(r"-?\d+", label) for label in labels)
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
        return int(label) if label is not None and self._numeric else label

    def size(self, i: int) -> int:
        return int(self._sizes[i])

    def read(self, i: int) -> bytes:
        shard = self.shards[self._shard[i]]
        return read_range(shard, int(self._offsets[i]), int(self._sizes[i]))


def expand(pattern: str) -> list[str]:
    """`a-{08..10}.tar` -> a-08.tar, a-09.tar, a-10.tar; `*` and `?` by what exists."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found:
        first, last = found.groups()
        numbers = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
        whole = [pattern[: found.start()] + n + pattern[found.end() :] for n in numbers]
        return [shard for name in whole for shard in expand(name)]
    if glob.has_magic(pattern) and (is_remote(pattern) or not Path(pattern).exists()):
        shards = match_files(pattern) if is_remote(pattern) else sorted(glob.glob(pattern))
        if not shards:
            raise InputError(f"{pattern}: no such shards; check the path")
        return shards
    return [pattern]


def _index(shard: str) -> pa.Table:
    # Not shard.parquet, which knew nothing of tars in tars.
    file = derived(shard, "members.parquet", lambda target: _build_index(shard, target))
    return pq.read_table(file, schema=SCHEMA)


def _build_index(shard: str, target: Path) -> None:
    opened: Any = fsspec.open(shard, "rb")
    with opened as file, pq.ParquetWriter(target, SCHEMA) as writer:
        end = file.seek(0, 2)
        with _progress(shard, end) as progress:
            images = 0
            for table in _grouped(_tables(file, shard, end, progress)):
                writer.write_table(table)
                images += len(table)
            progress.update(end - progress.n)
    if not images:
        raise InputError(f"{shard}: no image in this shard")


def _progress(shard: str, size: int) -> tqdm:
    return tqdm(
        total=size,
        unit="B",
        unit_scale=True,
        desc=f"indexing {shard.rpartition('/')[2]}",
        disable=size <= LARGE,
        mininterval=0.5 if sys.stderr.isatty() else 30,  # a log file keeps every update
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


def _tables(file: IO[bytes], shard: str, end: int, progress: tqdm) -> Iterator[pa.Table]:
    """The images of each tar inside the shard, then the shard's own."""
    own, folders = _Samples(file, shard), set()
    for member in _members(file, shard, 0, end, progress):
        folder = _inner_folder(member.name)
        if folder is None:
            own.add(member)
            continue
        if folder in folders:
            raise InputError(f"{shard}: holds {member.name} twice; give each tar a name of its own")
        folders.add(folder)
        yield _inner_table(file, shard, member, progress)
    yield own.table()


def _inner_table(file: IO[bytes], shard: str, outer: tarfile.TarInfo, progress: tqdm) -> pa.Table:
    where = f"{shard}: {outer.name}"
    inner = _Samples(file, where, f"{_inner_folder(outer.name)}/")
    start = outer.offset_data
    for member in _members(file, where, start, start + outer.size, progress):
        if _inner_folder(member.name) is not None:
            raise InputError(
                f"{where}: holds the tar {member.name}, and only two levels are read; unpack "
                f"{outer.name} once"
            )
        inner.add(member)
    return inner.table()


def _inner_folder(name: str) -> str | None:
    """Under which name the images of a member that is a tar itself appear; None for others."""
    stem, extension = os.path.splitext(name.removeprefix("./"))
    return stem if extension.lower() == ".tar" and not is_hidden(stem) else None


def _members(
    file: IO[bytes], where: str, start: int, end: int, progress: tqdm
) -> Iterator[tarfile.TarInfo]:
    """Files in the tar at [start, end) of `file`; their offsets are those in `file`.

    Raises:
        InputError: it is not a tar, damaged or truncated.
    """
    try:
        if end - start < tarfile.BLOCKSIZE:  # else the first header would be what comes after it
            raise tarfile.ReadError(f"{end - start} bytes")
        file.seek(start)
        archive = tarfile.TarFile(fileobj=file)  # begins where the file stands
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep millions
            progress.update(member.offset_data - progress.n)
            if member.size < 0:  # would go back and round for ever
                raise tarfile.ReadError(f"{member.name} has {member.size} bytes")
            if member.isfile():
                if member.offset_data + member.size > end:
                    raise InputError(f"{where}: ends within {member.name}; fetch it again")
                yield member
            if archive.offset >= end:
                return
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes it for the end
            raise tarfile.ReadError(f"bad header at byte {archive.offset - start}")
    except (tarfile.TarError, EOFError) as error:
        raise InputError(f"{where}: not a whole tar file ({error}); fetch it again") from error


class _Samples:
    """Images and labels of one tar, found in any order.

    Args:
        where: the tar, for messages.
        folder: what keys begin with.
    """

    def __init__(self, file: IO[bytes], where: str, folder: str = "") -> None:
        self.file = file
        self.where = where
        self.folder = folder
        self.images: dict[str, tuple[int, int]] = {}
        self.labels: dict[str, str] = {}

    def add(self, member: tarfile.TarInfo) -> None:
        path = member.name.removeprefix("./") if self.folder else member.name
        folder, slash, name = path.rpartition("/")
        stem, _, extension = name.partition(".")
        key, extension = f"{self.folder}{folder}{slash}{stem}", f".{extension.lower()}"
        last = f".{extension.rpartition('.')[2]}"
        if last in EXTENSIONS:
            # One sample may hold several images; each is one of its own.
            key = key if key not in self.images else f"{key} [{extension}]"
            self.images[key] = member.offset_data, member.size
        elif extension in (".cls", ".json"):
            self._add_label(key, extension, member)

    def _add_label(self, key: str, extension: str, member: tarfile.TarInfo) -> None:
        self.file.seek(member.offset_data)
        try:
            content = self.file.read(member.size).decode().strip()
        except UnicodeDecodeError as error:
            raise InputError(f"{self.where}: {member.name} is not text ({error})") from error
        value = content if extension == ".cls" else self._json_label(content, member.name)
        if value is not None:
            self.labels[key] = str(value)

    def _json_label(self, content: str, name: str) -> object:
        try:
            found = json.loads(content)
        except ValueError as error:
            raise InputError(f"{self.where}: {name} is not JSON ({error})") from error
        return found.get("label") if isinstance(found, dict) else None

    def table(self) -> pa.Table:
        keys = list(self.images)
        columns = [
            keys,
            [self.images[k][0] for k in keys],
            [self.images[k][1] for k in keys],
            [self.labels.get(re.sub(r" \[.*\]$", "", k)) for k in keys],
        ]
        try:
            return pa.table(columns, schema=SCHEMA)
        except UnicodeEncodeError as error:
            name = ascii(error.object)
            raise InputError(f"{self.where}: {name} is not valid UTF-8; rename it") from error
