"""Stage `select`: the k best of each predicted class that leak nothing (SSLD section 3.3.4).

What can be known without looking at pictures is decided first; `greedy.py` then decides which of
the others are looked at, in the order of their scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ssld.common.errors import InputError
from ssld.curate import tables
from ssld.curate.config import CurateConfig
from ssld.curate.context import Work
from ssld.curate.near_duplicates.search import Examination
from ssld.curate.near_duplicates.within_selection import WithinSelection
from ssld.curate.select.greedy import Selection
from ssld.curate.select.greedy import select as select_greedily
from ssld.curate.select.topk import Entries, TopK
from ssld.curate.sets.images import Shard
from ssld.curate.sets.index import (
    Index,
    TeacherScores,
    exact_copies,
    exact_duplicates,
    rows_with_keys,
)
from ssld.curate.tables import top_classes
from ssld.data.sources import key as key_of
from ssld.data.sources import open_source

KEPT, COMPETES = "kept", "beyond_k"
"""Decisions: the one that is in no `tables.REASONS`, and the one of what may still be kept."""
SCORED = ["classes", "probabilities"]


@dataclass(frozen=True)
class Outcome:
    """What became of each image of the pool."""

    decision: np.ndarray
    """object [n]: a key of tables.REASONS, or kept."""
    other: dict[int, str]
    """Row -> location of the image because of which it went, or why it cannot be read."""
    selection: Selection
    within: WithinSelection


def select(
    work: Work,
    examination: Examination,
    scores: TeacherScores,
    labeled: Index | None,
    num_classes: int,
    excluded: set[str],
) -> Outcome:
    """Decide, examining no more than is needed; every process comes to the same decision.

    Args:
        excluded: keys of select.exclude_keys.
    """
    pool, settings = examination.pool, work.config.select
    tie_breakers = pool.tie_breakers()
    decision, other = _without_looking(examination, labeled, excluded)
    for shard, table in scores.read(SCORED) if settings.min_score > 0 else ():
        here, surest = decision[shard.first : shard.last], top_classes(table)[1][:, 0]
        here[(here == COMPETES) & (surest < settings.min_score)] = "min_score"  # a view

    def best(depth: int) -> tuple[Entries, np.ndarray]:
        top = TopK(depth, num_classes)
        for shard, table in scores.read(SCORED):
            top.add(*_entries(shard, table, decision, tie_breakers, work.config))
        return top.result()

    within = WithinSelection(work, examination, scores)
    chosen = select_greedily(best, settings.k, examination.examine, within.near_duplicates)
    decision[chosen.contaminated] = "protected"
    removed, by = chosen.removed.T
    decision[removed] = "inside"
    names = pool.locations(np.unique(by))
    other |= {row: names[kept] for row, kept in zip(removed.tolist(), by.tolist(), strict=True)}
    decision[chosen.row] = KEPT
    return Outcome(decision, other, chosen, within)


def excluded_keys(config: CurateConfig) -> set[str]:
    """Keys of all images of the sources, and lines of the text files, of select.exclude_keys.

    Raises:
        InputError: one cannot be opened.
    """
    keys: set[str] = set()
    for path in config.select.exclude_keys:
        if path.endswith(".txt"):
            try:
                lines = Path(path).read_text(encoding="utf-8").split("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"select.exclude_keys {path}: cannot be read ({error})") from error
            keys |= {line.strip() for line in lines if line.strip()}
        else:
            source = open_source(path)
            keys |= {key_of(source.sample_id(i)) for i in range(len(source))}
    return keys


def _without_looking(
    examination: Examination, labeled: Index | None, excluded: set[str]
) -> tuple[np.ndarray, dict[int, str]]:
    """Decisions by reading and hashes alone; the first reason of REASONS that holds counts, so it
    is written last."""
    pool, other = examination.pool, {}
    decision = np.full(len(pool.images), COMPETES, object)

    def drop(twins: dict[int, int], index: Index, reason: str) -> None:
        """Because of a twin in `index`, row -> row."""
        names = index.locations(np.unique(list(twins.values())).astype(np.int64))
        decision[list(twins)] = reason
        other.update({row: names[twin] for row, twin in twins.items()})

    drop(exact_copies(pool), pool, "copy")
    decision[rows_with_keys(pool, excluded, key_of)] = "excluded_key"
    if labeled:
        twins = exact_duplicates(pool, labeled)
        drop({row: twin for row, (twin, _) in twins.items()}, labeled, "labeled")
    decision[[row for row in examination.unseen if examination.contaminated[row]]] = "protected"
    reasons = pool.column("reason").to_pylist()
    unreadable = {row: reason for row, reason in enumerate(reasons) if reason is not None}
    decision[list(unreadable)] = "unreadable"
    return decision, other | unreadable


def _entries(
    shard: Shard,
    table: pa.Table,
    decision: np.ndarray,
    tie_breakers: np.ndarray,
    config: CurateConfig,
) -> tuple[np.ndarray, ...]:
    """Rows, classes, scores and tie-breakers of what competes: an image in each of its places."""
    places = config.select.assign_top_p
    classes, probabilities = (values[:, :places] for values in top_classes(table))  # [n, places]
    free = decision[shard.first : shard.last] == COMPETES
    competes = free[:, None] & (classes >= 0) & (probabilities >= config.select.min_score)
    row = np.broadcast_to(np.arange(shard.first, shard.last)[:, None], classes.shape)[competes]
    return row, classes[competes], probabilities[competes], tie_breakers[row]


def write_selection(
    work: Work, pool: Index, scores: TeacherScores, outcome: Outcome, closest: dict[str, str]
) -> None:
    """Write inside.parquet, selected.parquet and dropped.parquet.

    Args:
        closest: location of an image of the pool -> that of the reference image it is closest to.
    """
    tables.write_table(work.out / "inside.parquet", [outcome.within.table()], tables.INSIDE)
    selected = _selected(pool, outcome.selection)
    tables.write_table(work.out / "selected.parquet", [selected], tables.SELECTED)
    dropped = _dropped(pool, scores, outcome, closest)
    tables.write_table(work.out / "dropped.parquet", dropped, tables.DROPPED)


def _selected(pool: Index, chosen: Selection) -> pa.Table:
    """Rows of SELECTED by class and rank."""
    order = np.argsort(chosen.row)
    columns = ["sample_id", "path", "offset", "size", "location", "sha256"]
    table = pool.at(chosen.row[order], columns).take(pa.array(np.argsort(order)))
    for name, values in (("class", chosen.cls), ("rank", chosen.rank), ("score", chosen.score)):
        table = table.append_column(name, pa.array(values))
    return table.select(tables.SELECTED.names)


def _dropped(
    pool: Index, scores: TeacherScores, outcome: Outcome, closest: dict[str, str]
) -> Iterator[pa.Table]:
    """Rows of DROPPED in the order of the pool."""
    shards = zip(pool.read(["location"]), scores.read(SCORED), strict=True)
    for (shard, table), (_, scored) in shards:
        decision = outcome.decision[shard.first : shard.last]
        gone = np.flatnonzero(decision != KEPT)
        paths = table["location"].take(pa.array(gone)).to_pylist()
        leaked = decision[gone] == "protected"
        classes, probabilities = (values[gone, 0] for values in top_classes(scored))
        columns = {
            "path": paths,
            "protected": [
                closest.get(path) if leaks else None
                for path, leaks in zip(paths, leaked, strict=True)
            ],
            "reason": decision[gone].tolist(),
            "other": [
                None if leaks else outcome.other.get(shard.first + i)
                for i, leaks in zip(gone.tolist(), leaked, strict=True)
            ],
            "class": pa.array(classes, mask=classes < 0),
            "score": pa.array(probabilities, mask=classes < 0),
        }
        yield pa.table(columns).cast(tables.DROPPED)
