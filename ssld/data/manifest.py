"""A Parquet manifest: one row an image, with `path` or `bytes`, `sample_id` and maybe `label`."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from ssld.data.storage import derived, is_remote, read_all, stamp
from ssld.errors import InputError


class ManifestSource:
    """Rows of a manifest, local or remote; relative `path`s are relative to the manifest's folder.

    Random rows of a compressed `bytes` column would decode a whole row group each; that column is
    copied once into an uncompressed, memory-mapped Arrow file (see `storage.derived`).

    Raises:
        InputError: not Parquet, columns missing or of another type, a repeated `sample_id`.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        stamp(path)
        try:
            with fsspec.open(path, "rb") as file:
                parquet = pq.ParquetFile(file)
                names = set(parquet.schema_arrow.names)
                self._check_columns(names)
                wanted = [n for n in ("path", "sample_id", "label") if n in names]
                table = parquet.read(columns=wanted).combine_chunks()
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: not a readable Parquet file ({error})") from error
        if not table.num_rows:
            raise InputError(f"{path}: the manifest has no rows")
        self._rows = table
        self._ids = table["sample_id"].cast(pa.string())
        self._check_ids()
        self.class_names = self._names()
        self._blobs: Any = None
        self._blob_file = None
        if "bytes" in names:
            self._blob_file = str(derived(path, "arrow", self._copy_bytes))

    def _check_columns(self, names: set[str]) -> None:
        if "sample_id" not in names or not names & {"path", "bytes"}:
            raise InputError(
                f"{self.path}: has the columns {', '.join(sorted(names))}; a manifest needs "
                "`sample_id` and one of `path` and `bytes`"
            )

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
        if "label" not in self._rows.column_names:
            return None
        kind = self._rows["label"].type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return sorted(x for x in self._rows["label"].unique().to_pylist() if x is not None)
        if not (pa.types.is_integer(kind) or pa.types.is_null(kind)):
            raise InputError(f"{self.path}: the column label is {kind}; give integers or strings")
        return None

    def _copy_bytes(self, target: Path) -> None:
        schema = pa.schema([("bytes", pa.large_binary())])
        with fsspec.open(self.path, "rb") as file, pa.OSFile(str(target), "wb") as sink:
            with pa.ipc.new_file(sink, schema) as writer:
                for batch in pq.ParquetFile(file).iter_batches(256, columns=["bytes"]):
                    column = batch.column(0).cast(pa.large_binary())
                    writer.write_batch(pa.record_batch([column], schema=schema))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_blobs": None}

    def __len__(self) -> int:
        return self._rows.num_rows

    def sample_id(self, i: int) -> str:
        return self._ids[i].as_py()

    def location(self, i: int) -> str:
        if self._blob_file is not None:
            return f"{self.path} row {i} ({self.sample_id(i)})"
        path = str(self._rows["path"][i].as_py())
        if is_remote(path) or os.path.isabs(path):
            return path
        return f"{self.path.rpartition('/')[0] or '.'}/{path}"

    def label(self, i: int) -> str | int | None:
        return self._rows["label"][i].as_py() if "label" in self._rows.column_names else None

    def size(self, i: int) -> None:
        return None

    def read(self, i: int) -> bytes:
        if self._blob_file is None:
            return read_all(self.location(i))
        if self._blobs is None:  # opened in each process: a memory map does not pickle
            mapped = pa.memory_map(self._blob_file)
            self._blobs = pa.ipc.open_file(mapped).read_all()["bytes"]
        return self._blobs[i].as_py() or b""
