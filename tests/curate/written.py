"""Tables of a curation written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from ssld.curate import tables

Row = dict[str, Any]


def write(out: Path, name: str, rows: list[Row]) -> None:
    """A table of `rows`; what they leave out is null."""
    schema = getattr(tables, name.split("/")[0].upper())
    filled = [{column: row.get(column) for column in schema.names} for row in rows]
    path = out / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    tables.write_table(path, [pa.Table.from_pylist(filled, schema)], schema)


def index(out: Path, name: str, locations: list[str], unreadable: dict[str, str] | None = None):
    """The index of one set."""
    rows = []
    for row, location in enumerate(locations):
        reason = (unreadable or {}).get(location)
        found: Row = {"set": name, "source": 0, "row": row, "location": location, "path": location}
        found |= {"sample_id": location.rpartition("/")[2], "reason": reason}
        if reason is None:
            found |= {"sha256": bytes([row]) * 32, "bytes": 1234, "width": 160, "height": 120}
            found |= {"mode": "RGB", "orientation": 1}
        rows.append(found)
    write(out, f"index/{name}-000000", rows)


def scores(out: Path, best: list[tuple[int, float] | None]) -> None:
    """Scores of the gallery: its best class and probability, or None where it cannot be read."""
    rows = []
    for row, found in enumerate(best):
        known: Row = {"row": row, "sample_id": str(row)}
        if found:
            classes = [found[0], *[number for number in range(10) if number != found[0]]][:10]
            known |= {"classes": classes, "probabilities": [found[1], *[(1 - found[1]) / 9] * 9]}
            known |= {"embedding": [0.0]}
        rows.append(known)
    write(out, "scores/000000", rows)


def pair(gallery: str, protected: str, inliers: int, ncc: float | None = None, **more: Any) -> Row:
    """A row of pairs with the verdict of the default rule."""
    found: Row = {"gallery": gallery, "protected": protected, "inliers": inliers, "ncc": ncc}
    same = inliers >= 15 or (inliers >= 5 and ncc is not None and ncc >= 0.7)
    found |= {"verdict": "duplicate" if same else "clear", "overridden": False, "rule": 1}
    return found | {"cosine": 0.5, "mirrored": False, **more}
