"""Tar shards in WebDataset naming, read by random access through an index that is built once.

Files that share a name up to the first dot of its last part are one sample: `0001.jpg`, `0001.cls`
(a class number) or `0001.json` (with a `label`).
"""

from __future__ import annotations

import glob
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssld.data.folder import EXTENSIONS
from ssld.data.storage import derived, is_remote, read_range
from ssld.errors import InputError

SCHEMA = pa.schema(
    [("key", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("label", pa.string())]
)


class ShardSource:
    """All images of some tar files, local or remote.

    Args:
        path: one tar, a brace range (`x-{000..127}.tar`) or a local glob.

    Raises:
        InputError: a shard is missing, truncated or has no image.
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

    def label(self, i: int) -> str | int | None:
        label = self._table["label"][i].as_py()
        return int(label) if label is not None and self._numeric else label

    def size(self, i: int) -> int:
        return int(self._sizes[i])

    def read(self, i: int) -> bytes:
        shard = self.shards[self._shard[i]]
        return read_range(shard, int(self._offsets[i]), int(self._sizes[i]))


def expand(pattern: str) -> list[str]:
    """`a-{08..10}.tar` -> a-08.tar, a-09.tar, a-10.tar; local `*` and `?` by what exists."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found:
        first, last = found.groups()
        numbers = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
        whole = [pattern[: found.start()] + n + pattern[found.end() :] for n in numbers]
        return [shard for name in whole for shard in expand(name)]
    if not is_remote(pattern) and glob.has_magic(pattern) and not Path(pattern).exists():
        shards = sorted(glob.glob(pattern))
        if not shards:
            raise InputError(f"{pattern}: no such shards; check the path")
        return shards
    return [pattern]


def _index(shard: str) -> pa.Table:
    file = derived(shard, "shard.parquet", lambda target: _build_index(shard, target))
    return pq.read_table(file, schema=SCHEMA)


def _build_index(shard: str, target: Path) -> None:
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, str] = {}
    try:
        opened: Any = fsspec.open(shard, "rb")
        with opened as file, tarfile.open(fileobj=file, mode="r:") as archive:
            end = file.seek(0, 2)
            for member in archive:
                if member.isfile():
                    _add_member(archive, member, shard, end, images, labels)
    except (tarfile.TarError, EOFError) as error:
        raise InputError(f"{shard}: not a whole tar file ({error}); fetch it again") from error
    if not images:
        raise InputError(f"{shard}: no image in this shard")
    keys = list(images)
    columns = [
        keys,
        [images[k][0] for k in keys],
        [images[k][1] for k in keys],
        [labels.get(re.sub(r" \[.*\]$", "", k)) for k in keys],
    ]
    pq.write_table(pa.table(columns, schema=SCHEMA), target)


def _add_member(
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    shard: str,
    end: int,
    images: dict[str, tuple[int, int]],
    labels: dict[str, str],
) -> None:
    folder, slash, name = member.name.rpartition("/")
    stem, _, extension = name.partition(".")
    key, extension = f"{folder}{slash}{stem}", f".{extension.lower()}"
    if member.offset_data + member.size > end:
        raise InputError(f"{shard}: ends within {member.name}; fetch it again")
    last = f".{extension.rpartition('.')[2]}"
    if last in EXTENSIONS:
        # One sample may hold several images; each is one of its own.
        images[key if key not in images else f"{key} [{extension}]"] = (
            member.offset_data,
            member.size,
        )
    elif extension in (".cls", ".json"):
        content = archive.extractfile(member).read().decode().strip()  # type: ignore[union-attr]
        value = content if extension == ".cls" else _json_label(content, shard, member.name)
        if value is not None:
            labels[key] = str(value)


def _json_label(content: str, shard: str, name: str) -> object:
    try:
        found = json.loads(content)
    except ValueError as error:
        raise InputError(f"{shard}: {name} is not JSON ({error})") from error
    return found.get("label") if isinstance(found, dict) else None
