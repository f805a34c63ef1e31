"""A Parquet manifest: one row an image, with `path` or `bytes`, `sample_id` and maybe `label`; or a
file as the hub's `datasets` library writes it, Parquet or Arrow (`columns.py`). Several files, as
`train-*.parquet` of the hub, are one source, too.

Beside `path`, integer columns `offset` and `size` may say where in that file an image lies, row by
row, so that a selection from tars and manifests is a small manifest and nothing is copied:

    offset  size    the image is
    null    any     the whole file
    given   given   that byte range of the file, such as a member of a tar
    given   null    that row of another manifest, which has `bytes`, or member of a zip archive
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from ssld.common.errors import InputError, one_line
from ssld.data.columns import Columns, find_columns, inner, read_labels, texts_at, whole
from ssld.data.labels import class_names, class_order
from ssld.data.patterns import TABLES
from ssld.data.source import Account, Indirect, Source
from ssld.data.storage import Address, absolute, is_remote, read_all, read_range, stamp
from ssld.data.table_file import (
    Blobs,
    TableFile,
    opened,
    require_row,
    stem_of,
    without_bytes,
)
from ssld.data.zip_archive import Members

pc: Any = pyarrow.compute  # whose functions are made when it is imported

_NULL = -1
"""In arrays of offsets and sizes."""


class ManifestSource:
    """Rows of a manifest, local or remote; relative `path`s are relative to the manifest's folder.

    Raises:
        InputError: not Parquet or Arrow, columns missing or of another type, a repeated
            `sample_id`, an `offset` that cannot be one.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.account = Account()
        table, columns = self._load()
        if not table.num_rows:
            raise InputError(
                f"{path}: the manifest has no rows: give it one for each image, or name another"
            )
        try:
            table.validate(full=True)  # text may be no UTF-8
            self._take(table, columns)
        except pa.ArrowException as error:
            reason = one_line(error, 200)
            raise InputError(
                f"{path}: a column is not of the kind that its name stands for in a manifest "
                f"({reason}); make the manifest anew"
            ) from error

    def _load(self) -> tuple[pa.Table, Columns]:
        """All but the images' bytes. Raises InputError."""
        stamp(self.path)
        with opened(self.path) as file:
            columns = find_columns(file.schema)
            return self._read(file, columns), columns

    def _take(self, table: pa.Table, columns: Columns) -> None:
        """Raises InputError, pa.ArrowException."""
        path = self.path
        self._labels = None
        if columns.label is not None:
            self._labels = read_labels(path, table[columns.label], columns.names)
            if columns.label != "label":
                self.account.note("rows with labels from another column", columns.label, len(table))
        self._files: Any = self._paths(table, columns)
        self._has_bytes = self._files is None
        self._ids = self._sample_ids(table, columns)
        self._check_ids()
        self.class_names = columns.names or self._names()
        """In the file's own order, where it names its classes, else sorted."""
        self._places: np.ndarray | None = None
        """int64 [n, 3], where rows point into files: number in `_files`, offset, size."""
        self._blobs: dict[str, Blobs | Members] = {}
        if self._has_bytes:
            self._blobs[absolute(path)] = Blobs(path)
        elif "offset" in table.column_names:
            self._add_places(self._numbers(table, "offset"), self._numbers(table, "size"))

    def _read(self, file: TableFile, columns: Columns) -> pa.Table:
        names = file.schema.names
        twice = sorted(name for name in set(names) if names.count(name) > 1)
        if twice:
            raise InputError(f"{self.path}: has the column {twice[0]} twice; rename one")
        hub = columns.bytes is not None and columns.bytes != "bytes"
        if not (columns.bytes or columns.path) or not (hub or "sample_id" in names):
            raise InputError(
                f"{self.path}: has the columns {', '.join(sorted(names))}; a manifest needs "
                "`sample_id` and one of `path` and `bytes`, or a column `image` as the datasets "
                "library writes it"
            )
        known = ("sample_id", columns.label, "offset", "size")
        wanted = [x for x in known if x is not None and x in names]
        wanted += [columns.path] if columns.path else []
        wanted += [f"{columns.bytes}.path"] if columns.nested else []
        return file.read(wanted).combine_chunks()

    def _paths(self, table: pa.Table, columns: Columns) -> Any:
        """The column of paths, where images are files of their own; else None."""
        if columns.bytes is None:
            return table[columns.path]
        if not columns.nested or not without_bytes(self.path, columns):
            return None
        return inner(table[columns.bytes], "path")  # the library writes so what it does not embed

    def _sample_ids(self, table: pa.Table, columns: Columns) -> pa.ChunkedArray:
        """The given ids, or `FILE/NAME` by the images' own names, or else `FILE/FILE-ROW`."""
        if "sample_id" in table.column_names:
            return table["sample_id"].cast(pa.string())
        stem = stem_of(self.path)
        names = None
        if columns.nested and "path" in [x.name for x in table[columns.bytes].type.fields]:
            paths = inner(table[columns.bytes], "path").cast(pa.string())
            names = pc.replace_substring_regex(paths, r"^.*[/\\]", "")
        elif self._files is not None:
            names = self._files.cast(pa.string())
        if names is None or names.null_count or len(names.unique()) < len(names):
            names = pa.chunked_array([[f"{stem}-{row:06d}" for row in range(table.num_rows)]])
        return pc.binary_join_element_wise(stem, names, "/")

    def _check_ids(self) -> None:
        if self._ids.null_count:
            row = self._ids.to_pylist().index(None)
            raise InputError(f"{self.path}: row {row} has no sample_id")
        if len(self._ids.unique()) != len(self._ids):
            counts = Counter(self._ids.to_pylist())
            repeated = counts.most_common(1)[0][0]
            raise InputError(
                f"{self.path}: sample_id {repeated!r} occurs more than once; make the "
                "ids unique, they decide the views"
            )

    def _names(self) -> list[str] | None:
        if self._labels is None or not pa.types.is_large_string(self._labels.type):
            return None
        return class_order(self._labels.unique().drop_null().to_pylist()) or None

    def _numbers(self, table: pa.Table, name: str) -> np.ndarray:
        """The column offset or size, int64 [n], _NULL where it is null."""
        if name not in table.column_names:
            return np.full(len(table), _NULL)
        kind = table[name].type
        if not (pa.types.is_integer(kind) or pa.types.is_null(kind)) or kind == pa.uint64():
            raise InputError(
                f"{self.path}: the column {name} is {kind}; beside path it is a place in that "
                "file, so make it int64 or rename it"
            )
        column = table[name].cast(pa.int64())
        numbers = column.fill_null(_NULL).to_numpy()
        if (numbers < 0).sum() > column.null_count:
            raise InputError(f"{self.path}: the column {name} has negative numbers; use null")
        return numbers

    def _add_places(self, offsets: np.ndarray, sizes: np.ndarray) -> None:
        if (offsets == _NULL).all():
            return
        # Few files hold many images: their names are kept, and pickled, once.
        encoded = self._files.dictionary_encode("encode").combine_chunks()
        self._files, numbers = encoded.dictionary, encoded.indices.to_numpy()
        self._places = np.stack([numbers, offsets, sizes], axis=1)
        rows = np.flatnonzero((offsets != _NULL) & (sizes == _NULL))
        last = np.full(len(self._files), _NULL)
        np.maximum.at(last, numbers[rows], offsets[rows])
        self._open_others(last)

    def _open_others(self, last: np.ndarray) -> None:
        """Look into the manifests that rows point to, before loader processes read them.

        Args:
            last: row that is needed of each file, or _NULL, [files].
        """
        for number in np.flatnonzero(last != _NULL).tolist():
            path, row = absolute(self._resolved(number)), int(last[number])
            if not path.lower().endswith((*TABLES, ".zip")):
                raise InputError(
                    f"{self.path}: {path} has an offset but no size; give both, or neither for "
                    "the whole file"
                )
            try:
                self._blobs[path] = rows_of(path, row)
            except InputError as error:
                raise InputError(f"{self.path} points to {error}") from error

    def _file(self, i: int) -> str:
        return self._resolved(i if self._places is None else int(self._places[i, 0]))

    def _resolved(self, number: int) -> str:
        path = str(self._files[number].as_py())
        if is_remote(path) or os.path.isabs(path):
            return path
        return f"{self.path.rpartition('/')[0] or '.'}/{path}"

    def _range(self, i: int) -> tuple[int | None, int | None]:
        """Offset and size of row i."""
        if self._places is None or self._places[i, 1] == _NULL:
            return None, None
        _, offset, size = self._places[i].tolist()
        return offset, None if size == _NULL else size

    def __len__(self) -> int:
        return len(self._ids)

    def sample_id(self, i: int) -> str:
        return self._ids[i].as_py()

    def location(self, i: int) -> str:
        if self._has_bytes:
            return f"{self.path} row {i} ({self.sample_id(i)})"
        path, (offset, size) = self._file(i), self._range(i)
        if offset is None:
            return path
        place = f"row {offset}" if size is None else f"at byte {offset}"
        return f"{path} {place} ({self.sample_id(i)})"

    def address(self, i: int) -> Address:
        if self._has_bytes:
            return Address(absolute(self.path), i)
        return Address(absolute(self._file(i)), *self._range(i))

    def label(self, i: int) -> str | int | None:
        return None if self._labels is None else self._labels[i].as_py()

    def labeled(self) -> np.ndarray:
        if self._labels is None:
            return np.zeros(len(self), bool)
        return self._labels.is_valid().to_numpy(zero_copy_only=False)

    def size(self, i: int) -> int | None:
        return self._range(i)[1]

    def listed(self, rows: np.ndarray) -> tuple[list[str], list[int | None]]:
        ids = texts_at(self._ids, rows)
        if self._places is None:
            return ids, [None] * len(rows)
        places = self._places[rows, 1:].tolist()
        return ids, [None if _NULL in place else place[1] for place in places]

    def read(self, i: int) -> bytes:
        if self._has_bytes:
            return self._blobs[absolute(self.path)].read(i)
        path, (offset, size) = self._file(i), self._range(i)
        if offset is None:
            return read_all(path)
        if size is None:
            return self._blobs[absolute(path)].read(offset)
        return read_range(path, offset, size)


def rows_of(path: str, needed: int | None = None) -> Blobs | Members:
    """What reads the images of a Parquet, Arrow or zip file by their rows.

    Args:
        needed: the last row that is.

    Raises:
        InputError: it cannot be read, or has no such row.
    """
    if path.lower().endswith(".zip"):
        members = Members(path)
        if needed is not None and needed >= len(members):
            raise InputError(f"{path} file {needed}, but it ends before; make the manifest anew")
        return members
    if needed is not None:
        require_row(path, needed)
    return Blobs(path)


class TableSource(Indirect):
    """The rows of several manifests, one after the other.

    Raises:
        InputError: one of them cannot be opened, an id is in two, some have names as labels and
            some numbers.
    """

    def __init__(self, path: str, files: Sequence[str]) -> None:
        self.path = path
        self.files = [ManifestSource(file) for file in files]
        self._ends = np.cumsum([len(file) for file in self.files])
        self.class_names = self._class_names()
        self.account = Account()
        for file in self.files:
            self.account.add(file.account)
        self._check_ids()

    def _class_names(self) -> list[str] | None:
        named = [file for file in self.files if file.class_names]
        numbered = [f for f in self.files if not f.class_names and f.labeled().any()]
        if named and numbered:
            raise InputError(
                f"{self.path}: labels are names in {named[0].path} and numbers in "
                f"{numbered[0].path}; give them apart, or write one kind"
            )
        return class_names(named)

    def _check_ids(self) -> None:
        ids = pa.chunked_array([whole(file._ids) for file in self.files])
        if len(ids.unique()) < len(ids):
            seen = ids.value_counts()
            again = next(x for x in seen if x["counts"].as_py() > 1)["values"].as_py()
            raise InputError(
                f"{self.path}: sample_id {again!r} is in more than one of the files; make the ids "
                "unique, they decide the views"
            )

    def _place(self, i: int) -> tuple[Source, int]:
        number = int(np.searchsorted(self._ends, i, side="right"))
        file = self.files[number]
        return file, i - int(self._ends[number]) + len(file)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def labeled(self) -> np.ndarray:
        return np.concatenate([file.labeled() for file in self.files])

    def listed(self, rows: np.ndarray) -> tuple[list[str], list[int | None]]:
        numbers = np.searchsorted(self._ends, rows, side="right")
        ids = [""] * len(rows)
        sizes: list[int | None] = [None] * len(rows)
        for number in np.unique(numbers).tolist():
            at, file = np.flatnonzero(numbers == number), self.files[number]
            some_ids, some_sizes = file.listed(rows[at] - int(self._ends[number]) + len(file))
            for i, name, size in zip(at.tolist(), some_ids, some_sizes, strict=True):
                ids[i], sizes[i] = name, size
        return ids, sizes


def open_tables(path: str, files: Sequence[str]) -> ManifestSource | TableSource:
    """One Parquet or Arrow file, or several as one source."""
    return ManifestSource(files[0]) if len(files) == 1 else TableSource(path, files)
