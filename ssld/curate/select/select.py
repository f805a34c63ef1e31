"""Stage `select`: the k best of each predicted class that leak nothing (SSLD section 3.3.4).

What can be known without looking at pictures goes first; `selection.py` then decides which of the
others are looked at, in the order of their scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from ssld.curate import tables
from ssld.curate.context import Work
from ssld.curate.near_duplicates.search import Examination
from ssld.curate.near_duplicates.within_selection import Inside
from ssld.curate.select.greedy import Selection
from ssld.curate.select.greedy import select as select_greedily
from ssld.curate.select.scores import Scores
from ssld.curate.select.topk import Entries, TopK
from ssld.curate.sets import exact as overlap
from ssld.curate.sets.images import Shard
from ssld.curate.sets.index import Index
from ssld.data.sources import key as key_of

KEPT = "kept"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of each gallery image."""

    fate: np.ndarray
    """object [n]: a key of tables.REASONS, or kept."""
    other: dict[int, str]
    """Row -> location of the image because of which it went, or why it cannot be read."""
    selection: Selection
    inside: Inside
    num_classes: int


def select(
    work: Work,
    examination: Examination,
    scores: Scores,
    labeled: Index | None,
    num_classes: int,
    excluded: set[str],
) -> Outcome:
    """Decide, examining no more than is needed; every process comes to the same decision.

    Args:
        excluded: keys of select.exclude_keys.
    """
    gallery = examination.gallery
    ties = gallery.ties()
    fate, other = _without_looking(examination, labeled, excluded)
    _drop_unsure(fate, scores, work.config.select.min_score)

    def best(depth: int) -> tuple[Entries, np.ndarray]:
        top = TopK(depth, num_classes)
        for shard, table in scores.read(["classes", "probabilities"]):
            top.add(*_entries(shard, table, fate, ties, work))
        return top.result()

    inside = Inside(work, examination, scores)
    chosen = select_greedily(best, work.config.select.k, examination.examine, inside.copies)
    fate[chosen.leaked] = "protected"
    removed, by = chosen.removed.T
    fate[removed] = "inside"
    names = overlap.locations(gallery, np.unique(by))
    other |= {row: names[kept] for row, kept in zip(removed.tolist(), by.tolist(), strict=True)}
    fate[chosen.row] = KEPT
    return Outcome(fate, other, chosen, inside, num_classes)


def _without_looking(
    examination: Examination, labeled: Index | None, excluded: set[str]
) -> tuple[np.ndarray, dict[int, str]]:
    """Fates by reading and hashes alone; the first reason of REASONS that holds counts."""
    gallery, other = examination.gallery, {}
    fate = np.full(len(gallery.images), "beyond_k", object)
    copies = overlap.copies(gallery)
    fate[list(copies)] = "copy"
    names = overlap.locations(gallery, np.unique(list(copies.values())).astype(np.int64))
    other |= {row: names[first] for row, first in copies.items()}
    fate[overlap.with_keys(gallery, excluded, key_of)] = "excluded_key"
    if labeled:
        twins = overlap.same(gallery, labeled)
        names = overlap.locations(
            labeled, np.unique([row for row, _ in twins.values()]).astype(int)
        )
        fate[list(twins)] = "labeled"
        other |= {row: names[twin] for row, (twin, _) in twins.items()}
    fate[[row for row in examination.unseen if examination.leaked[row]]] = "protected"
    for shard, table in gallery.read(["reason"]):
        for i, reason in enumerate(table["reason"].to_pylist()):
            if reason is not None:
                fate[shard.first + i] = "unreadable"
                other[shard.first + i] = reason
    return fate, other


def _drop_unsure(fate: np.ndarray, scores: Scores, least: float) -> None:
    for shard, table in scores.read(["probabilities"]) if least > 0 else ():
        here = fate[shard.first : shard.last]
        surest = _top(table, "probabilities", np.float32)[:, 0]
        here[(here == "beyond_k") & (surest < least)] = "min_score"


def _entries(
    shard: Shard, table: pa.Table, fate: np.ndarray, ties: np.ndarray, work: Work
) -> tuple[np.ndarray, ...]:
    """Rows, classes, scores and ties of what competes."""
    settings = work.config.select
    places = settings.assign_top_p
    classes = _top(table, "classes", np.int32)[:, :places]
    probabilities = _top(table, "probabilities", np.float32)[:, :places]
    free = fate[shard.first : shard.last] == "beyond_k"
    competes = free[:, None] & (classes >= 0) & (probabilities >= settings.min_score)
    row = np.broadcast_to(np.arange(shard.first, shard.last)[:, None], classes.shape)[competes]
    return row, classes[competes], probabilities[competes], ties[row]


def _top(table: pa.Table, name: str, kind: type) -> np.ndarray:
    """[n, TOP] of a column of lists; what is unreadable has class -1 and probability 0."""
    column = table[name].combine_chunks()
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    found = np.full((len(column), tables.TOP), -1 if name == "classes" else 0, kind)
    found[valid] = column.drop_null().flatten().to_numpy().reshape(-1, tables.TOP)
    return found


def selected_tables(gallery: Index, outcome: Outcome) -> Iterator[pa.Table]:
    """Rows of SELECTED by class and rank."""
    chosen = outcome.selection
    columns = ["sample_id", "path", "offset", "size", "location", "sha256"]
    parts = [gallery.table(gallery.images.shards[0], columns).slice(0, 0)]
    order = np.argsort(chosen.row)
    rows = chosen.row[order]
    for shard, here in gallery.images.by_shard(rows):
        parts.append(gallery.table(shard, columns).take(pa.array(here - shard.first)))
    table = pa.concat_tables(parts)
    for name, values in (
        ("class", chosen.cls[order]),
        ("rank", chosen.rank[order]),
        ("score", chosen.score[order]),
    ):
        table = table.append_column(name, pa.array(values))
    yield table.take(pa.array(np.argsort(order))).select(tables.SELECTED.names)


def dropped_tables(
    gallery: Index, scores: Scores, outcome: Outcome, because: dict[str, str]
) -> Iterator[pa.Table]:
    """Rows of DROPPED in the order of the gallery.

    Args:
        because: location of a gallery image -> that of the protected image it is closest to.
    """
    classes = scores.read(["classes", "probabilities"])
    for (shard, table), (_, scored) in zip(gallery.read(["location"]), classes, strict=True):
        fate = outcome.fate[shard.first : shard.last]
        gone = np.flatnonzero(fate != KEPT)
        paths = table["location"].take(pa.array(gone)).to_pylist()
        reasons = fate[gone].tolist()
        cls, score = (
            _top(scored, "classes", np.int32)[gone, 0],
            _top(scored, "probabilities", np.float32)[gone, 0],
        )
        unscored = cls < 0
        columns = {
            "path": paths,
            "protected": [
                because.get(path) if reason == "protected" else None
                for path, reason in zip(paths, reasons, strict=True)
            ],
            "reason": reasons,
            "other": [
                outcome.other.get(shard.first + i) if r != "protected" else None
                for i, r in zip(gone.tolist(), reasons, strict=True)
            ],
            "class": pa.array(cls, mask=unscored),
            "score": pa.array(score, mask=unscored),
        }
        yield pa.table(columns).cast(tables.DROPPED)
