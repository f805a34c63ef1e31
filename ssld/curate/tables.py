"""What a curation writes: Parquet tables, each whole or absent, the same bytes for the same work.

index/*.parquet     one row a file of any set      selected.parquet   manifest for `ssld distill`
scores/*.parquet    one row a gallery file         dropped.parquet    every other gallery file, why
pairs.parquet       gallery against protected      inside.parquet     selected against selected
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from ssld.common.files import cannot_write

TOP = 10
"""Classes that are stored for each image."""

INDEX = pa.schema(
    [
        ("set", pa.string()),  # gallery, protected or labeled
        ("source", pa.int16()),  # its number in the settings
        ("row", pa.int64()),  # within the set
        ("sample_id", pa.string()),  # unique within the set
        ("location", pa.string()),  # where it is, as messages and the other tables say it
        ("path", pa.string()),  # ssld.data.sources.Address
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("sha256", pa.binary(32)),  # of the file; null where it cannot be read
        ("pixel_sha256", pa.binary(32)),  # of height, width and upright RGB pixels
        ("bytes", pa.int64()),
        ("width", pa.int32()),  # px, upright
        ("height", pa.int32()),
        ("mode", pa.string()),  # Pillow's: RGB, L, CMYK, P, ...
        ("orientation", pa.int8()),  # EXIF, 1 to 8
        ("reason", pa.string()),  # why it cannot be read, else null
    ]
)

SCORES = pa.schema(
    [
        ("row", pa.int64()),
        ("sample_id", pa.string()),
        ("classes", pa.list_(pa.int32(), TOP)),  # the surest first; null for unreadable files
        ("probabilities", pa.list_(pa.float32(), TOP)),
        ("embedding", pa.list_(pa.float16())),  # penultimate features
    ]
)

MATCH = (
    ("cosine", pa.float32()),  # of whitened teacher features; without a teacher share of votes
    ("inliers", pa.int32()),
    ("mirrored", pa.bool_()),
    ("affine", pa.list_(pa.float32(), 6)),  # null where none was found; see matching.py
    ("ncc", pa.float32()),  # null where it was not needed
)
"""How two images match, as `near_duplicates/matching.py` says it."""

PAIRS = pa.schema(
    [
        ("gallery", pa.string()),  # locations
        ("protected", pa.string()),
        *MATCH,
        ("exact", pa.string()),  # bytes or pixels where they are the same, else null
        ("verdict", pa.string()),  # duplicate or clear
        ("overridden", pa.bool_()),  # the verdict is that of overrides.jsonl
        ("rule", pa.int16()),  # version of matching.py's rule
    ]
)

INSIDE = pa.schema(
    [
        ("gallery", pa.string()),
        ("kept", pa.string()),  # the better scored one
        *MATCH,
        ("verdict", pa.string()),
        ("rule", pa.int16()),
    ]
)

SELECTED = pa.schema(
    [
        ("sample_id", pa.string()),
        ("path", pa.string()),  # ssld.data.sources.Address
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("location", pa.string()),
        ("class", pa.int32()),
        ("rank", pa.int32()),  # within the class, from 1
        ("score", pa.float32()),
        ("sha256", pa.binary(32)),
    ]
)

REASONS = {
    "unreadable": "cannot be read",
    "protected": "near-duplicate of a protected image",
    "labeled": "same file or pixels as a labeled image",
    "excluded_key": "its key is in select.exclude_keys",
    "copy": "same file or pixels as another gallery image",
    "inside": "near-duplicate of a better scored image of the selection",
    "min_score": "scored below select.min_score",
    "beyond_k": "beyond the k best of its class",
}

DROPPED = pa.schema(
    [
        ("path", pa.string()),  # location
        ("protected", pa.string()),  # location of the protected image, where that is the reason
        ("reason", pa.string()),  # a key of REASONS
        ("other", pa.string()),  # location of the kept or labeled twin, or why it is unreadable
        ("class", pa.int32()),
        ("score", pa.float32()),
    ]
)


def write_table(path: Path, batches: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Write `batches` to `path`, as `write_whole` does."""

    def fill(file: BinaryIO) -> None:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_table(batch.cast(schema))

    write_whole(path, fill)


def writer(schema: pa.Schema) -> Callable[[Path, Iterable[pa.Table]], None]:
    """`write_table` of one schema."""
    return functools.partial(write_table, schema=schema)


def write_whole(path: Path, fill: Callable[[BinaryIO], None]) -> None:
    """Write what `fill` writes to `path` in one step that survives a power cut.

    Raises:
        InputError: it cannot be written; what was there is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def part_files(folder: Path) -> list[Path]:
    """The finished parts of a table that is a folder, in their order."""
    return sorted(folder.glob("[!.]*.parquet"))


def opened(path: Path) -> ds.Dataset | None:
    """A table that is a file or a folder of parts, not yet read; None where there is none."""
    files = part_files(path) if path.is_dir() else [path] if path.is_file() else []
    return ds.dataset([str(file) for file in files], format="parquet") if files else None


def rows(path: Path, columns: list[str], where: pc.Expression | None = None) -> pa.Table | None:
    """Those rows of a table for which `where` holds, in the table's order; None without a table."""
    table = opened(path)
    return None if table is None else table.to_table(columns=columns, filter=where)
