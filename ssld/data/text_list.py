"""A list of images as text: CSV, TSV or lines, as pandas, spreadsheets, Kaggle and the lists of
ImageNet (`n01440764/1.JPEG 0`) have them. One row an image: where it is, and maybe its class.

What a column holds is decided by the header, or, without one, by what all rows have in common;
where that leaves a doubt it is refused. `LIST::FOLDER` says where the images lie, else they are
relative to the list.

A long list is parsed once a machine, into an Arrow file of the cache that all processes map; its
name is the sha256 of the list, so that one that changed is another.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute

from ssld.common.errors import InputError, one_line
from ssld.data.columns import Columns
from ssld.data.folder import EXTENSIONS
from ssld.data.manifest import ManifestSource
from ssld.data.storage import CacheError, absolute, derived, is_remote, read_all, stamp

pc: Any = pyarrow.compute  # whose functions are made when it is imported

PATHS = ("path", "filepath", "file_path", "file", "filename", "file_name", "image", "img",
         "image_path", "img_path", "imagepath", "image_file", "image_name", "images", "image_id",
         "name", "id")  # fmt: skip
"""Names of the column of images, in small letters; of several the first."""
LABELS = ("label", "labels", "class", "class_name", "category", "target", "label_name", "class_id",
          "classname", "y")  # fmt: skip
"""The same of classes."""
INDEX = ("", "index", "unnamed: 0", "unnamed: 0.1")
"""What pandas calls the numbers of rows."""
LOOKED_AT = 20
"""Images, evenly spread, whose files are looked for at the start."""
LONG_BYTES = 10_000_000
"""Of a list that is parsed once a machine; less takes less than a second or two."""
SMALL_BYTES, SMALL_ROWS = 2**31, 2**19
"""Paths have 4096 bytes at most."""
FORMAT = 1
"""Of what is kept of one; it counts up when lists are read in another way."""
_REST = b"ssld.not_read"
_WHOLE = r"^/|^[\pL\pN_][\pL\pN_+.-]*://"
"""Paths that are absolute, and URLs as `storage.is_remote` knows them, for Arrow's RE2."""
_SEPARATORS = {",": "','", ";": "';'", "\t": "tabs"}
_NUMBER = re.compile(r"-?[0-9]{1,18}(\.0+)?")  # pandas makes 3.0 of 3 in a column with gaps


class ListSource(ManifestSource):
    """The images that a text file names.

    Args:
        path: as given.
        file: the list.
        folder: where its paths begin; by default the list's own.

    Raises:
        InputError: it is no such list, names an image twice, or none of its images is there.
    """

    def __init__(self, path: str, file: str, folder: str | None = None) -> None:
        self._file_name = file
        self._folder = absolute(folder or file.rpartition("/")[0] or ".")
        super().__init__(path)

    def _load(self) -> tuple[pa.Table, Columns]:
        stamp(self._file_name)
        table = self._cached() if self._is_long() else _parsed(self._file_name)
        for name in json.loads((table.schema.metadata or {})[_REST]):
            self.account.note("column(s) that are no `label` by their name", name)
        names = table["name"]
        ending = self._missing_ending(names)  # asked anew each time: the files may have moved
        if ending:
            names = pc.binary_join_element_wise(names, _scalar(ending), _scalar(""))
        columns = {"sample_id": _small(self._ids_of(names)), "path": _small(self._places_of(names))}
        has_labels = "label" in table.column_names
        if has_labels:
            columns["label"] = table["label"]
        label = "label" if has_labels else None
        return pa.table(columns), Columns(None, False, "path", label, None)

    def _is_long(self) -> bool:
        return not is_remote(self._file_name) and os.path.getsize(self._file_name) >= LONG_BYTES

    def _cached(self) -> pa.Table:
        list_ = self._file_name
        digest = _digest(list_)
        content = f"{FORMAT}/{os.path.splitext(list_)[1].lower()}/{digest}"
        try:
            file = derived(list_, "list.arrow", partial(_write, list_, digest), content=content)
        except CacheError:  # a list needs none
            return _parsed(list_)
        try:
            with pa.memory_map(str(file)) as mapped:
                table = pa.ipc.open_file(mapped).read_all()
                table.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{file} is damaged ({one_line(error, 200)}); delete it") from error
        return table

    def _ids_of(self, names: pa.ChunkedArray) -> pa.ChunkedArray:
        """Of a file below the folder its relative path, so that the set may move."""
        folder = posixpath.join(self._folder, "")
        if not folder.startswith("/"):
            return names
        below = pc.starts_with(names, folder)
        if not pc.any(below).as_py():
            return names
        start = len(folder)
        return pc.if_else(below, pc.utf8_slice_codeunits(names, start), names)

    def _places_of(self, names: pa.ChunkedArray) -> pa.ChunkedArray:
        whole = pc.match_substring_regex(names, _WHOLE)
        below = pc.binary_join_element_wise(_scalar(self._folder), names, _scalar("/"))
        return pc.if_else(whole, names, below)

    def _place_of(self, name: str) -> str:
        return name if is_remote(name) or os.path.isabs(name) else f"{self._folder}/{name}"

    def _missing_ending(self, names: pa.ChunkedArray) -> str:
        """What names lack to be those of files (Kaggle's ids), mostly nothing; one that does not
        exist is counted as unreadable, but not all may be."""
        count = min(LOOKED_AT, len(names))
        spread = [names[i * len(names) // count].as_py() for i in range(count)]
        places = [self._place_of(name) for name in spread]
        if any(is_remote(x) or os.path.exists(x) for x in places):
            return ""
        for ending in sorted(EXTENSIONS):
            if all(os.path.exists(f"{place}{ending}") for place in places):
                return ending
        here = " (but below the working directory)" if os.path.exists(spread[0]) else ""
        raise InputError(
            f"{self._file_name}: none of its images is there, such as {places[0]}{here}: say where "
            f"they lie, as {self._file_name}::FOLDER"
        )


def _parsed(file: str) -> pa.Table:
    """Columns `name`, as `_plain` has it, and maybe `label`; in its metadata the columns that are
    not read."""
    rows = _rows(file)
    header = _header(rows[0]) if rows else None
    body = rows[1:] if header else rows
    if not body:
        raise InputError(f"{file}: no row names an image: give a list of some")
    paths, labels, rest = _columns(file, header, body)
    names = [_plain(row[paths]) for row in body]
    _check_names(file, names)
    columns: dict[str, Any] = {"name": pa.chunked_array([pa.array(names, pa.large_string())])}
    if labels is not None:
        columns["label"] = _labels([row[labels].strip() for row in body])
    return pa.table(columns).replace_schema_metadata({_REST: json.dumps(rest)})


def _digest(file: str) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _write(file: str, digest: str, target: Path) -> None:
    table = _parsed(file)
    if _digest(file) != digest:  # else what it says now would be found under what it said before
        raise InputError(f"{file}: changed while it was read; start again")
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _check_names(file: str, names: Sequence[str]) -> None:
    if "" in names:
        raise InputError(
            f"{file}: the image number {names.index('') + 1} has no path; give it one, or take the "
            "row out"
        )
    if len(set(names)) < len(names):
        again = Counter(names).most_common(1)[0][0]
        first = names.index(again)
        raise InputError(
            f"{file}: {again!r} is there twice, as image {first + 1} and "
            f"{names.index(again, first + 1) + 1}; name each image once"
        )


def _scalar(text: str) -> pa.Scalar:
    return pa.scalar(text, pa.large_string())


def _small(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """With offsets of 32 bits, in as many pieces as that takes."""
    rows = len(column) if column.nbytes < SMALL_BYTES else SMALL_ROWS
    parts = [column.slice(i, rows).cast(pa.string()) for i in range(0, len(column), rows)]
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks])


def _rows(file: str) -> list[list[str]]:
    """Cells of all rows but empty ones."""
    try:
        text = _text(read_all(file))
    except (OSError, UnicodeError) as error:
        raise InputError(f"{file}: not a list in UTF-8 ({error}); save it so") from error
    said = re.match(r"sep=(.)\r?\n", text)  # what Excel is told so
    if said:
        text = text[said.end() :]
    lines = text.splitlines()
    separators = [said.group(1)] if said else ["\t"] if file.lower().endswith(".tsv") else None
    separators = separators or [x for x in _SEPARATORS if x in text] or [","]
    cut = {x: rows for x in separators if (rows := _cut(file, text, x))}
    fitting = {x: rows for x, rows in cut.items() if len(rows[0]) > 1 and _even(rows)}
    if len(fitting) > 1:
        named = " and ".join(_SEPARATORS[x] for x in fitting)
        raise InputError(f"{file}: could be cut at {named}; write it with one of them")
    if fitting:
        return next(iter(fitting.values()))
    uneven = next((x for x, rows in cut.items() if len(rows[0]) > 1), None)
    if uneven is not None and not file.lower().endswith(".txt"):
        rows = cut[uneven]
        i = next(i for i, row in enumerate(rows) if len(row) != len(rows[0]))
        raise InputError(
            f"{file}: row {i + 1} has {len(rows[i])} cells and the first has {len(rows[0])}; write "
            "names with commas in quotes"
        )
    return _spaced([line.strip() for line in lines if line.strip()])


def _text(data: bytes) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):  # Excel's "Unicode text"
        return data.decode("utf-16")
    if b"\0" in data:
        raise UnicodeError("it has zero bytes")
    return data.decode("utf-8-sig")


def _cut(file: str, text: str, separator: str) -> list[list[str]]:
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    except csv.Error as error:
        raise InputError(f"{file}: not a list ({error}); save it anew") from error
    return [row for row in rows if any(cell.strip() for cell in row)]


def _even(rows: list[list[str]]) -> bool:
    return all(len(row) == len(rows[0]) for row in rows)


def _spaced(lines: list[str]) -> list[list[str]]:
    """Lines without separators: a path each, or, where all end so, a path and a class number."""
    pairs = [line.rsplit(None, 1) for line in lines]
    if all(len(x) == 2 and _NUMBER.fullmatch(x[1]) for x in pairs) and not any(
        map(_is_image, lines)
    ):
        return pairs
    return [[line] for line in lines]


def _header(row: list[str]) -> list[str] | None:
    """Names of columns, in small letters; None where the first row is an image's."""
    if any(_is_image(cell) for cell in row):
        return None
    names = [cell.strip().lower() for cell in row]
    if set(names) & {*PATHS, *LABELS}:
        return names
    return names if len(names) > 1 and not any(map(_NUMBER.fullmatch, names)) else None


def _is_image(cell: str) -> bool:
    return os.path.splitext(cell.strip())[1].lower() in EXTENSIONS


def _columns(
    file: str, header: list[str] | None, rows: list[list[str]]
) -> tuple[int, int | None, list[str]]:
    """Number of the column of paths, that of labels, and names of those that are not read."""
    if header is None:
        return *_by_content(file, rows), []
    paths = next((header.index(x) for x in PATHS if x in header), None)
    if paths is None:
        paths = _only_images(
            file, rows, f"none of its columns ({', '.join(header)}) is called path"
        )
    if {"xmin", "x_min", "bbox"} & set(header):
        raise InputError(f"{file}: is a list of boxes, not of classes; it is not read")
    others = [x for x in LABELS if x in header and header.index(x) != paths]
    labels = header.index(others[0]) if others else None
    rest = [x for i, x in enumerate(header) if i not in (paths, labels) and x not in INDEX]
    return paths, labels, rest


def _by_content(file: str, rows: list[list[str]]) -> tuple[int, int | None]:
    paths = _only_images(file, rows, "it has no header")
    others = [i for i in range(len(rows[0])) if i != paths]
    first = [row[0].strip() for row in rows]
    if others[:1] == [0] and first == [str(i) for i in range(len(rows))]:  # pandas' index
        others = others[1:]
    if len(others) > 1:
        raise InputError(
            f"{file}: has no header and {len(others)} columns beside the paths; write one, such as "
            "path,label"
        )
    return paths, others[0] if others else None


def _only_images(file: str, rows: list[list[str]], reason: str) -> int:
    columns = [i for i in range(len(rows[0])) if all(_is_image(row[i]) for row in rows)]
    if len(columns) != 1:
        what = "two columns hold" if columns else "no column holds"
        raise InputError(f"{file}: {reason}, and {what} names of images; call the one path")
    return columns[0]


def _plain(path: str) -> str:
    """With slashes and without `./`; what is in a URL stays."""
    path = path.strip()
    if is_remote(path) or not path:
        return path
    return posixpath.normpath(path.replace("\\", "/"))


def _labels(cells: list[str]) -> pa.Array:
    """Class numbers where all are, else names; see `read_labels` for the rest."""
    known = [cell for cell in cells if cell and cell.lower() != "nan"]
    if not all(map(_NUMBER.fullmatch, known)):
        return pa.array([cell or None for cell in cells], pa.string())
    numbers = [int(x.partition(".")[0]) if _NUMBER.fullmatch(x) else None for x in cells]
    return pa.array(numbers, pa.int64())
