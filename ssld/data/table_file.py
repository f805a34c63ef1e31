"""A file of rows: Parquet, or Arrow as the hub's `datasets` library saves it (`save_to_disk`, an
Arrow stream); and the encoded images in one, by row."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import fsspec
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from ssld.common.errors import InputError
from ssld.data.columns import Columns, find_columns, inner
from ssld.data.patterns import TABLES
from ssld.data.storage import derived, is_remote, read_all, stamp

pc: Any = pyarrow.compute  # whose functions are made when it is imported

BATCH_ROWS = 256
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"
"""Which a stream that was cut off between two batches lacks."""


class TableFile(Protocol):
    """What is asked of either; a column `a.b` is the field b of a column of structs, which comes as
    a column a of structs with that field alone."""

    schema: pa.Schema
    rows: int

    def read(self, columns: list[str]) -> pa.Table: ...

    def batches(self, column: str) -> Iterator[pa.Array]:
        """The column in parts of few rows."""
        ...


class _Parquet:
    def __init__(self, file: Any) -> None:
        self._file = pq.ParquetFile(file)
        self.schema = self._file.schema_arrow
        self.rows = self._file.metadata.num_rows

    def read(self, columns: list[str]) -> pa.Table:
        return self._file.read(columns=columns)

    def batches(self, column: str) -> Iterator[pa.Array]:
        return (x.column(0) for x in self._file.iter_batches(BATCH_ROWS, columns=[column]))


class _Arrow:
    def __init__(self, file: Any) -> None:
        self._table = pa.ipc.open_stream(file).read_all()
        self.schema = self._table.schema
        self.rows = self._table.num_rows

    def read(self, columns: list[str]) -> pa.Table:
        return pa.table({x.partition(".")[0]: self._column(x) for x in columns})

    def _column(self, column: str) -> pa.ChunkedArray:
        name, _, field = column.partition(".")
        whole = self._table[name]
        return pc.make_struct(inner(whole, field), field_names=[field]) if field else whole

    def batches(self, column: str) -> Iterator[pa.Array]:
        return iter(self._column(column).chunks)


@contextlib.contextmanager
def opened(path: str) -> Iterator[TableFile]:
    """
    Raises:
        InputError: it cannot be read, or is none.
    """
    kind = "Arrow" if path.lower().endswith(".arrow") else "Parquet"
    try:
        if kind == "Parquet":
            with fsspec.open(path, "rb") as file:
                yield _Parquet(file)
        elif is_remote(path):
            with fsspec.open(path, "rb") as file:
                yield _Arrow(_whole(file))
        else:
            with pa.memory_map(path) as file:  # the images in it are not read
                yield _Arrow(_whole(file))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable {kind} file ({error})") from error


def _whole(file: Any) -> Any:
    file.seek(max(0, file.seek(0, 2) - len(_STREAM_END)))
    if file.read() != _STREAM_END:
        raise pa.ArrowInvalid("it ends too early, or is no stream of the datasets library")
    file.seek(0)
    return file


class Blobs:
    """The encoded images of a Parquet or Arrow file, by row.

    Random rows of a compressed Parquet column would decode a whole row group each; the column is
    copied once into an uncompressed, memory-mapped Arrow file (see `storage.derived`). What is on
    this machine as Arrow is mapped as it is.
    """

    def __init__(self, path: str) -> None:
        self._in_place = path.lower().endswith(".arrow") and not is_remote(path)
        self._file = path if self._in_place else self._copy(path)
        self._column: Any = None

    @staticmethod
    def _copy(path: str) -> str:
        return str(derived(path, "arrow", partial(_copy_bytes, path)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_column": None}

    def read(self, row: int) -> bytes:
        """Raises OSError."""
        if self._column is None:  # opened in each process: a memory map does not pickle
            mapped = pa.memory_map(self._file)
            open_ = pa.ipc.open_stream if self._in_place else pa.ipc.open_file
            table = open_(mapped).read_all()
            columns = find_columns(table.schema)
            column = table[columns.bytes]
            self._column = inner(column, "bytes") if columns.nested else column
        return self._column[row].as_py() or b""


def require_row(path: str, row: int) -> None:
    """
    Raises:
        InputError: there is no image at that row.
    """
    stamp(path)
    with opened(path) as file:
        if find_columns(file.schema).bytes is None:
            raise InputError(f"{path}, which has no column bytes; name the files themselves")
        if row >= file.rows:
            raise InputError(f"{path} row {row}, but it ends before; make the manifest anew")


def bytes_of(columns: Columns) -> str:
    """How `TableFile` calls the column of encoded images."""
    return f"{columns.bytes}.bytes" if columns.nested else str(columns.bytes)


def without_bytes(path: str, columns: Columns) -> bool:
    """Whether no row has bytes."""
    with opened(path) as file:
        parts = (inner(x, "bytes") for x in file.batches(bytes_of(columns)))
        return all(part.null_count == len(part) for part in parts)


def _copy_bytes(path: str, target: Path) -> None:
    schema = pa.schema([("bytes", pa.large_binary())])
    with opened(path) as file, pa.OSFile(str(target), "wb") as sink:
        columns = find_columns(file.schema)
        with pa.ipc.new_file(sink, schema) as writer:
            for column in file.batches(bytes_of(columns)):
                column = inner(column, "bytes") if columns.nested else column
                writer.write_batch(pa.record_batch([column.cast(pa.large_binary())], schema=schema))


def stem_of(path: str) -> str:
    """A file's name without folders and ending, which ids of its rows begin with."""
    name = path.rpartition("/")[2]
    return name[: -len(name.rpartition(".")[2]) - 1] if name.lower().endswith(TABLES) else name


def tables_among(folder: str, names: Sequence[str]) -> list[str]:
    """Those of the `.parquet` and `.arrow` files below a folder that are its rows: the `.parquet`
    ones, if there are any; else, where `save_to_disk` wrote `state.json`, the files that it names,
    and not what `map` left beside them.

    Raises:
        InputError: one of those is missing.
    """
    chosen = [name for name in names if not name.lower().endswith(".arrow")]
    arrows = [] if chosen else names
    for parent in sorted({name.rpartition("/")[0] for name in arrows}):
        here = [name for name in arrows if name.rpartition("/")[0] == parent]
        saved = _saved(f"{folder.rstrip('/')}/{parent}".rstrip("/"))
        if saved is None:
            chosen += [x for x in here if not x.rpartition("/")[2].startswith(("cache-", "tmp"))]
            continue
        wanted = [f"{parent}/{name}".lstrip("/") for name in saved]
        lost = next((name for name in wanted if name not in here), None)
        if lost is not None:
            raise InputError(
                f"{folder}: {lost} is missing, which state.json beside it names; copy it, too"
            )
        chosen += wanted
    return chosen


def _saved(folder: str) -> list[str] | None:
    """Names of the files that `state.json` of a saved dataset says; None where there is none."""
    try:
        said = json.loads(read_all(f"{folder}/state.json"))
        return [str(x["filename"]) for x in said["_data_files"]]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
