"""Stage `duplicates`: images of the pool against the reference set, whichever are asked for.

Exact duplicates are joined by their hashes (`sets/index.py`) and not looked at any further.
Everything else is shortlisted and verified (`reference_set.py`, `matching.py`): all of the pool
when this stage is run by itself, only what may be selected when `select.py` asks. What has been
examined is never examined again, and what that showed does not depend on what else was.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssld.common.errors import InputError
from ssld.curate import tables
from ssld.curate.context import Part, Work, batched, key
from ssld.curate.near_duplicates.matching import DECIMALS, RULE_VERSION, verdicts
from ssld.curate.near_duplicates.reference_set import (
    Pair,
    Prepared,
    Read,
    ReferenceSet,
    features_at,
    reads,
    refuse_changed,
)
from ssld.curate.near_duplicates.shortlist import Shortlist
from ssld.curate.sets.images import Shard
from ssld.curate.sets.index import Index, TeacherScores, exact_copies, exact_duplicates
from ssld.curate.workers import BATCH

EXAMINED = pa.schema(
    [
        ("row", pa.int64()),  # of the pool
        ("protected", pa.int32()),  # number in the prepared set; -1 where nothing was shortlisted
        *tables.MATCH,
    ]
)
"""What a part holds; verdicts are made from it when it is read."""

_JUDGED = pa.schema([*EXAMINED, *map(tables.PAIRS.field, ("exact", "verdict", "overridden"))])
"""The same on its way to PAIRS; `protected` is a row of the reference set."""

Item = tuple[np.ndarray, list[Read], Shortlist | None]
"""Rows of the pool, how to read them, and the teacher's shortlist."""


def examine(folder: Path, item: Item) -> tuple[list[str | None], pa.Table]:
    """The job of a worker: a batch of images -> why some cannot be read, and rows of EXAMINED.

    Args:
        folder: of a `Prepared` reference set.
    """
    rows, images, shortlist = item
    results = features_at(images)
    whole = [None if isinstance(value, str) else value for value in results]
    problems = [value if isinstance(value, str) else None for value in results]
    pairs = _opened(folder).examine(whole, shortlist)
    return problems, _examined_table(rows.tolist(), pairs)


_opened = functools.lru_cache(1)(ReferenceSet)  # in each worker: memory maps do not pickle


def _examined_table(rows: list[int], pairs: list[Pair]) -> pa.Table:
    values = [{**vars(pair), "row": rows[pair.image], "protected": pair.number} for pair in pairs]
    without = set(range(len(rows))) - {pair.image for pair in pairs}
    values += [
        {"row": rows[i], "protected": -1, "cosine": 0.0, "inliers": 0, "mirrored": False}
        for i in sorted(without)
    ]
    return pa.Table.from_pylist(values, EXAMINED)


class Examination:
    """Which images of the pool have been examined, and what that says.

    Args:
        scores: whose embeddings make the shortlist; None takes the descriptors' votes alone.
    """

    def __init__(
        self,
        work: Work,
        pool: Index,
        reference: Index,
        scores: TeacherScores | None,
        ready: Prepared,
    ) -> None:
        self.work, self.pool, self.reference = work, pool, reference
        self.scores, self.ready = scores, ready
        self.exact = exact_duplicates(pool, reference)
        self.examined = np.zeros(len(pool.images), bool)
        self.contaminated = np.zeros(len(pool.images), bool)
        """Which are known to be duplicates of reference images."""
        self.overrides = read_overrides(work, pool, reference)
        for row, (number, _) in self.exact.items():
            self.contaminated[row] = self.overrides.get((row, number), True)
        self._named = with_twins(pool, [row for (row, _), bad in self.overrides.items() if bad])
        self.unseen = [*self.exact, *self._named]
        """Rows that are contaminated without having been looked at, unless an override says
        other."""
        self._readable = pool.readable()
        self._known: set[Path] = set()
        self._load()

    def folder(self, shard: Shard) -> Path:
        """Where the parts of a shard of the pool are."""
        scored = self.scores.keys[shard.number] if self.scores else None
        name = key(self.ready.key, self.pool.keys[shard.number], scored)
        return self.work.out / "work" / "pairs" / f"{shard.number:06d}-{name}"

    def examine(self, rows: np.ndarray) -> np.ndarray:
        """Examine those of `rows` (int64, sorted) that have not been; returns which are
        contaminated, bool."""
        pending = rows[~self.examined[rows] & ~np.isin(rows, list(self.exact))]
        pending = pending[self._readable[pending]]
        parts = [
            Part(self.folder(shard) / f"{key(here.tolist())}.parquet", here)
            for shard, here in self.pool.images.by_shard(pending)
        ]
        self.work.fill("duplicates", parts, self._compare, tables.writer(EXAMINED))
        self._load()
        return self.contaminated[rows]

    def _compare(self, parts: list[Part[np.ndarray]]) -> Iterator[pa.Table]:
        job = functools.partial(examine, self.ready.folder)
        batches = (rows for part in parts for rows in batched(part.rows))
        compared = self.work.ordered(job, self._items(parts))
        for rows, (problems, table) in zip(batches, compared, strict=True):
            if any(problems):
                refuse_changed(problems, reads(self.pool, rows))
            yield table

    def _items(self, parts: list[Part[np.ndarray]]) -> Iterator[Item]:
        """The shortlist of a shard at once: searching 64 by 64 takes seven times as long."""
        ready = ReferenceSet(self.ready.folder)
        for part in parts:
            how, shortlist = reads(self.pool, part.rows), None
            if self.scores:
                shard, _ = next(self.pool.images.by_shard(part.rows))
                embeddings = self.scores.embeddings(shard)[part.rows - shard.first]
                shortlist = ready.shortlist(embeddings)
            for start in range(0, len(part.rows), BATCH):
                here = slice(start, start + BATCH)
                yield part.rows[here], how[here], shortlist[here] if shortlist else None

    def _load(self) -> None:
        """Take in what parts say that have not been read yet."""
        for shard in self.pool.images.shards:
            for path in tables.part_files(self.folder(shard)):
                if path not in self._known:
                    self._known.add(path)
                    table = pq.read_table(path)
                    rows = table["row"].to_numpy()
                    self.examined[rows] = True
                    self.contaminated[rows[self._duplicate(table)]] = True
        self.contaminated[self._named] = True
        self.work.processes.wait()  # or another process's next part would be read here

    def _duplicate(self, table: pa.Table) -> np.ndarray:
        """bool [n]: the rule's and the user's verdict on rows of EXAMINED."""
        number = table["protected"].to_numpy()
        duplicate = verdicts(
            table["inliers"].to_numpy(),
            exact_decimals(table["ncc"]),
            # A share of votes says nothing of pictures that have hardly any.
            exact_decimals(table["cosine"]) if self.scores else np.zeros(len(table)),
            self.ready.structureless[number],
            self.work.config.duplicates.policy,
        )
        if self.overrides:
            for i, pair in enumerate(self._rows(table)):
                duplicate[i] = self.overrides.get(pair, duplicate[i])
        return duplicate & (number >= 0)

    def _rows(self, table: pa.Table) -> list[tuple[int, int]]:
        """(row of the pool, row of the reference set) of each row of EXAMINED."""
        number = self.ready.rows[table["protected"].to_numpy()]
        return list(zip(table["row"].to_pylist(), number.tolist(), strict=True))

    def pairs(self) -> Iterator[pa.Table]:
        """Rows of PAIRS, shard by shard of the pool, sorted by both rows."""
        references = self.reference.column("location")
        for shard in self.pool.images.shards:
            parts = [pq.read_table(path) for path in tables.part_files(self.folder(shard))]
            table = pa.concat_tables([EXAMINED.empty_table(), *parts])
            table = table.filter(pa.array(table["protected"].to_numpy() >= 0))
            whole = pa.concat_tables([self._examined(table), self._unexamined(shard, table)])
            whole = whole.sort_by([("row", "ascending"), ("protected", "ascending")])
            names = self.pool.table(shard, ["location"])["location"]
            columns = {
                **{name: whole[name] for name in whole.column_names},
                "gallery": names.take(pa.array(whole["row"].to_numpy() - shard.first)),
                "protected": references.take(whole["protected"]),
                "rule": pa.array(np.full(len(whole), RULE_VERSION, np.int16)),
            }
            yield pa.table({name: columns[name] for name in tables.PAIRS.names})

    def _examined(self, table: pa.Table) -> pa.Table:
        """Rows of EXAMINED with their verdicts, as _JUDGED."""
        overridden = [pair in self.overrides for pair in self._rows(table)]
        columns = {
            **{name: table[name] for name in EXAMINED.names},
            "protected": self.ready.rows[table["protected"].to_numpy()],
            "exact": pa.nulls(len(table), pa.string()),
            "verdict": verdict_names(self._duplicate(table)),
            "overridden": overridden,
        }
        return pa.table(columns, _JUDGED)

    def _unexamined(self, shard: Shard, table: pa.Table) -> pa.Table:
        """Exact duplicates, whose numbers are known without looking, and pairs that only the user
        names, as _JUDGED."""
        same = {"cosine": 1.0, "inliers": 0, "mirrored": False, "ncc": 1.0}
        judged: dict[tuple[int, int], dict[str, Any]] = {
            (row, number): {**same, "exact": what, "verdict": "duplicate", "overridden": False}
            for row, (number, what) in self.exact.items()
        }
        for pair in self.overrides.keys() - self._rows(table):
            values = judged.setdefault(pair, {"inliers": 0, "mirrored": False})
            verdict = "duplicate" if self.overrides[pair] else "clear"
            values |= {"verdict": verdict, "overridden": True}
        rows = [
            {"row": row, "protected": number, **values}
            for (row, number), values in judged.items()
            if row in shard.rows
        ]
        return pa.Table.from_pylist(rows, _JUDGED)


def write_pairs(work: Work, examination: Examination) -> tuple[dict[str, str], Counter[str]]:
    """Write pairs.parquet on the main process.

    Returns:
        location of an image of the pool -> the reference image it is closest to; and location of a
        reference image -> how many near-duplicates it has. Both are empty on other processes.
    """
    closest: dict[str, tuple[tuple, str]] = {}
    hits: Counter[str] = Counter()

    def noted() -> Iterator[pa.Table]:
        for table in examination.pairs():
            for row in table.filter(table["verdict"].to_numpy() == "duplicate").to_pylist():
                evidence = (row["exact"] is not None, row["inliers"], row["ncc"] or 0)
                hits[row["protected"]] += 1
                best = closest.get(row["gallery"])
                if best is None or evidence > best[0]:
                    closest[row["gallery"]] = evidence, row["protected"]
            yield table

    if work.main:
        tables.write_table(work.out / "pairs.parquet", noted(), tables.PAIRS)
        work.say(
            f"{work.out}/pairs.parquet: {len(closest):,} gallery images are near-duplicates of "
            f"{len(hits):,} protected ones"
        )
    return {name: reference for name, (_, reference) in closest.items()}, hits


def verdict_names(duplicate: np.ndarray) -> list[str]:
    """As the tables have them, of bool [n]."""
    return np.where(duplicate, "duplicate", "clear").tolist()


def exact_decimals(column: pa.ChunkedArray) -> np.ndarray:
    """float64 [n] of what was rounded before it was stored as float32, nan for null: .7 is .7."""
    return column.to_numpy(zero_copy_only=False).astype(np.float64).round(DECIMALS)


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
    stands_for = exact_copies(pool)
    groups = {stands_for.get(row, row) for row in rows}
    return sorted(groups | {row for row, first in stands_for.items() if first in groups})


def _rows_of(index: Index, names: set[str]) -> dict[str, int]:
    return {
        name: shard.first + i
        for shard, table in index.read(["location"])
        for i, name in enumerate(table["location"].to_pylist())
        if name in names
    }
