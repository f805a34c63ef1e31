"""What the user decided in the report: overrides.jsonl, one judged pair a line."""

from __future__ import annotations

import json

from ssld.common.errors import InputError
from ssld.curate.context import Work
from ssld.curate.sets import exact
from ssld.curate.sets.index import Index

DUPLICATE = {"duplicate": True, "clear": False}


def read_overrides(work: Work, pool: Index, reference: Index) -> dict[tuple[int, int], bool]:
    """overrides.jsonl of the report: (row of the pool, row of the reference set) -> is a duplicate.

    Raises:
        InputError: a line that is not one of the report's.
    """
    path = work.out / "overrides.jsonl"
    if not path.is_file():
        return {}
    decided: dict[tuple[str, str], bool] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line.decode("utf-8"))
            decided[row["gallery"], row["protected"]] = DUPLICATE[row["verdict"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f"{path} line {number}: not an override as the report exports them; mend or delete "
                "the line"
            ) from error
    rows = _rows_of(pool, {name for name, _ in decided})
    others = _rows_of(reference, {name for _, name in decided})
    known = {(rows[a], others[b]): x for (a, b), x in decided.items() if a in rows and b in others}
    if len(known) < len(decided):
        work.say(
            f"{path}: {len(decided) - len(known)} line(s) name images that are not there any more"
        )
    return known


def with_twins(pool: Index, rows: list[int]) -> list[int]:
    """Rows and all others that are the same picture: what one of them leaks, all leak."""
    if not rows:
        return []
    stands_for = exact.copies(pool)
    groups = {stands_for.get(row, row) for row in rows}
    return sorted(groups | {row for row, first in stands_for.items() if first in groups})


def _rows_of(index: Index, names: set[str]) -> dict[str, int]:
    return {
        name: shard.first + i
        for shard, table in index.read(["location"])
        for i, name in enumerate(table["location"].to_pylist())
        if name in names
    }
