"""What the tables of a curation hold at this moment, in numbers. Stages write them one by one, so
each may be absent; millions of rows are counted batch by batch, and only found ones are kept."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ssld.common.written_files import read_object
from ssld.curate.near_duplicates.matching import MIN_INLIERS
from ssld.curate.tables import REASONS, opened, rows

Where = pc.Expression | None
AGAIN = "move it away, and the next `ssld curate` writes it anew"


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
        self.manifest = read_object(manifest, AGAIN) if manifest.is_file() else {}

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
