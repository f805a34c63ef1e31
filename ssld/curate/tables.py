"""What a curation writes: Parquet tables, each whole or absent, the same bytes for the same work.

index/*.parquet     one row a file of any set      selected.parquet   manifest for `ssld distill`
scores/*.parquet    one row a gallery file         dropped.parquet    every other gallery file, why
pairs.parquet       gallery against protected      inside.parquet     selected against selected

Stages write them one by one, so each may be absent (`Curation`); millions of rows are counted batch
by batch, and only found ones are kept.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from ssld.common.files import read_object, write_atomically
from ssld.curate.near_duplicates.matching import MIN_INLIERS

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
    """Write `batches` to `path`, see `write_atomically`."""

    def fill(file: BinaryIO) -> None:
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_table(batch.cast(schema))

    write_atomically(path, fill)


def writer(schema: pa.Schema) -> Callable[[Path, Iterable[pa.Table]], None]:
    """`write_table` of one schema."""
    return functools.partial(write_table, schema=schema)


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


def top_classes(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Classes int32 [n, TOP] and their probabilities float32 [n, TOP], the surest first; -1 and 0
    where there are fewer, or the image cannot be read."""

    def column(name: str, kind: type, absent: float) -> np.ndarray:
        lists = table[name].combine_chunks()
        values = np.full((len(lists), TOP), absent, kind)
        valid = lists.is_valid().to_numpy(zero_copy_only=False)
        values[valid] = lists.drop_null().flatten().to_numpy().reshape(-1, TOP)
        return values

    return column("classes", np.int32, -1), column("probabilities", np.float32, 0)


Where = pc.Expression | None
WRITTEN_ANEW = "move it away, and the next `ssld curate` writes it anew"


def counted(path: Path, columns: list[str], where: Where = None) -> Counter[tuple]:
    """How many rows have which values in `columns`."""
    counts: Counter[tuple] = Counter()
    table = opened(path)
    for batch in table.to_batches(columns=columns, filter=where) if table else ():
        groups = pa.table(batch).group_by(columns).aggregate([([], "count_all")]).to_pydict()
        for *values, count in zip(*(groups[name] for name in (*columns, "count_all")), strict=True):
            counts[tuple(values)] += count
    return counts


class Curation:
    """The folder of a curation."""

    def __init__(self, out: Path) -> None:
        self.out = out
        manifest = out / "manifest.json"
        self.manifest = read_object(manifest, WRITTEN_ANEW) if manifest.is_file() else {}

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The lines of log.jsonl, but for one that a kill cut off."""
        path, lines = self.out / "log.jsonl", []
        for line in path.read_bytes().splitlines() if path.is_file() else []:
            with contextlib.suppress(ValueError, RecursionError):
                lines.append(json.loads(line.decode("utf-8")))
        return [line for line in lines if isinstance(line, dict) and "stage" in line]

    def has(self, name: str) -> bool:
        """Whether selected, dropped, pairs or inside is written."""
        return (self.out / f"{name}.parquet").is_file()

    def rows(self, name: str, columns: list[str], where: Where = None) -> list[dict[str, Any]]:
        """Rows of selected, dropped, pairs or inside; none without the table."""
        table = rows(self.out / f"{name}.parquet", columns, where)
        return [] if table is None else table.to_pylist()

    def setting(self, group: str, name: str, default: Any) -> Any:
        return ((self.manifest.get("settings") or {}).get(group) or {}).get(name, default)

    def class_name(self, number: int) -> str:
        names = self.manifest.get("label_names") or []
        return str(names[number]) if number < len(names) else f"class {number}"

    @cached_property
    def files(self) -> dict[str, int]:
        """Files of each set."""
        return {key[0]: count for key, count in counted(self.out / "index", ["set"]).items()}

    @cached_property
    def unreadable(self) -> dict[str, int]:
        """Files of each set that cannot be read."""
        bad = counted(self.out / "index", ["set"], pc.field("reason").is_valid())
        return {key[0]: count for key, count in bad.items()}

    @cached_property
    def scored(self) -> int:
        table = opened(self.out / "scores")
        return 0 if table is None else table.count_rows(filter=pc.field("classes").is_valid())

    @cached_property
    def dropped(self) -> Counter[tuple]:
        """{(reason, class): images}"""
        return counted(self.out / "dropped.parquet", ["reason", "class"])

    @cached_property
    def dropped_for(self) -> dict[str, int]:
        """{reason: images}, in the order in which reasons are looked for."""
        images = {reason: 0 for reason in REASONS}
        for (reason, _), count in self.dropped.items():
            images[reason] = images.get(reason, 0) + count
        return images

    @cached_property
    def selected(self) -> dict[int, int]:
        """{class: images}"""
        images = counted(self.out / "selected.parquet", ["class"])
        return {key[0]: count for key, count in sorted(images.items())}

    @cached_property
    def compared(self) -> int:
        """Examined pairs."""
        table = opened(self.out / "pairs.parquet")
        return 0 if table is None else table.count_rows()

    @cached_property
    def pairs(self) -> pa.Table | None:
        """The examined pairs that some threshold could make duplicates, or somebody's word."""
        duplicate = pc.field("verdict") == "duplicate"
        where = duplicate | (pc.field("inliers") >= MIN_INLIERS) | pc.field("overridden")
        table = opened(self.out / "pairs.parquet")
        return None if table is None else table.to_table(filter=where)

    @cached_property
    def near_duplicates(self) -> int:
        """Gallery images taken out for a protected one; before the selection: found so far."""
        if self.has("dropped"):
            return self.dropped_for["protected"]
        if self.pairs is None:
            return 0
        duplicates = self.pairs.filter(pc.field("verdict") == "duplicate")
        return len(duplicates["gallery"].unique())
