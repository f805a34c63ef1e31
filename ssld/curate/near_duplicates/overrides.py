"""What the user decided in the report: overrides.jsonl, one judged pair a line."""

from __future__ import annotations

import json

from ssld.common.errors import InputError
from ssld.curate.context import Work
from ssld.curate.sets import exact as overlap
from ssld.curate.sets.index import Index


def read_overrides(work: Work, gallery: Index, protected: Index) -> dict[tuple[int, int], bool]:
    """overrides.jsonl of the report: (gallery row, protected row) -> is a duplicate.

    Raises:
        InputError: a line that is not one of the report's.
    """
    path = work.out / "overrides.jsonl"
    if not path.is_file():
        return {}
    said: dict[tuple[str, str], bool] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line.decode("utf-8"))
            said[row["gallery"], row["protected"]] = {"duplicate": True, "clear": False}[
                row["verdict"]
            ]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"{path} line {number}: not an override as the report exports them; mend or delete "
                "the line"
            ) from error
    rows, others = (
        _rows_of(index, {names[side] for names in said})
        for side, index in enumerate((gallery, protected))
    )
    found = {(rows[a], others[b]): x for (a, b), x in said.items() if a in rows and b in others}
    if len(found) < len(said):
        work.say(
            f"{path}: {len(said) - len(found)} line(s) name images that are not there any more"
        )
    return found


def with_twins(gallery: Index, rows: list[int]) -> list[int]:
    """Rows and all others that are the same picture: what one of them leaks, all leak."""
    if not rows:
        return []
    stands_for = overlap.copies(gallery)
    groups = {stands_for.get(row, row) for row in rows}
    return sorted(groups | {row for row, first in stands_for.items() if first in groups})


def _rows_of(index: Index, names: set[str]) -> dict[str, int]:
    found = {}
    for shard, table in index.read(["location"]):
        for i, name in enumerate(table["location"].to_pylist()):
            if name in names:
                found[name] = shard.first + i
    return found
