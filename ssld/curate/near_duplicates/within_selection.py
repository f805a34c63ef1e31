"""Near-duplicates inside the selection: kept images against each other, verified like all others.

Candidates are kept images whose whitened teacher features are alike; a pair is looked at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssld.curate import tables
from ssld.curate.context import Part, Work
from ssld.curate.near_duplicates.matching import RULE_VERSION, compare, verdicts
from ssld.curate.near_duplicates.reference_set import ProtectedSet
from ssld.curate.near_duplicates.search import (
    Examination,
    Read,
    exact_decimals,
    features_at,
    reads,
    refuse_changed,
)
from ssld.curate.near_duplicates.shortlist import nearest
from ssld.curate.near_duplicates.sift import Features
from ssld.curate.select.scores import Scores
from ssld.curate.sets import exact as overlap
from ssld.curate.sets.images import batched, key
from ssld.curate.sets.index import Index
from ssld.curate.workers import BATCH

ALIKE = 0.5
"""Least cosine of whitened features of a pair that is looked at. 88 % of 24 edits of a photograph
reach it beside the original (benchmarks/near_duplicates.py); a copy that is missed here costs
little, as it leaks nothing, and each pair looked at costs 20 ms."""
NEIGHBOURS = 8
"""Most alike images that are looked at for one image at a time."""

MATCHED = pa.schema(
    [
        ("row", pa.int64()),  # of the gallery, the one that ranks lower
        ("kept", pa.int64()),
        ("cosine", pa.float32()),
        ("inliers", pa.int32()),
        ("mirrored", pa.bool_()),
        ("affine", pa.list_(pa.float32(), 6)),
        ("ncc", pa.float32()),
    ]
)

Pairs = list[tuple[int, int, float]]
"""(row, better ranked row, cosine)."""


def match_pairs(item: list[tuple[Read, Read]]) -> list[tuple | str]:
    """The job of a worker: how each pair matches, or why an image cannot be read."""
    known: dict[Read, Features | str] = {}
    found: list[tuple | str] = []
    for pair in item:
        for read in pair:
            if read not in known:
                known[read] = features_at([read])[0]
        first, second = (known[read] for read in pair)
        if isinstance(first, str) or isinstance(second, str):
            found.append(first if isinstance(first, str) else str(second))
        else:
            found.append(dataclasses.astuple(compare(first, [second])[0]))
    return found


class Inside:
    """Which kept images are near-duplicates of each other, as far as it has been asked.

    Args:
        examination: of the gallery, with its scores.
    """

    def __init__(self, work: Work, examination: Examination, scores: Scores) -> None:
        self.work, self.gallery, self.scores = work, examination.gallery, scores
        self.whiten = ProtectedSet(examination.ready.folder).whiten
        name = key(examination.ready.key, RULE_VERSION, scores.keys)
        self.folder = work.out / "work" / "inside" / name
        self._vectors: dict[int, np.ndarray] = {}
        self._asked: set[int] = set()
        self._looked_at: set[tuple[int, int]] = set()
        self._found: dict[tuple[int, int], bool] = {}
        self._parts: list[Part] = []

    def copies(self, kept: np.ndarray) -> np.ndarray:
        """All near-duplicates known among `kept`, after having looked for new ones.

        Args:
            kept: int64 rows of the gallery, best ranked first.

        Returns:
            int64 [m, 2]: pairs of rows.
        """
        pairs = self._candidates(kept)
        self._match(pairs)
        there = set(kept.tolist())
        found = [pair for pair, same in self._found.items() if same and there.issuperset(pair)]
        return np.array(sorted(found), np.int64).reshape(-1, 2)

    def _candidates(self, kept: np.ndarray) -> Pairs:
        """Pairs of kept images that are alike and have not been looked at."""
        if not len(kept):
            return []
        self._embed(kept)
        vectors = np.stack([self._vectors[row] for row in kept.tolist()])
        asking = [i for i, row in enumerate(kept.tolist()) if row not in self._asked]
        if not asking:
            return []
        count = min(NEIGHBOURS + 1, len(kept))
        cosines, others = nearest(vectors[asking], vectors, count)
        pairs: Pairs = []
        for i, near, near_cosines in zip(asking, others.tolist(), cosines.tolist(), strict=True):
            alike = [(j, c) for j, c in zip(near, near_cosines, strict=True) if c >= ALIKE]
            if len(alike) <= NEIGHBOURS:  # else ask again, when the first of them are gone
                self._asked.add(int(kept[i]))
            for j, cosine in alike:
                pair = int(kept[max(i, j)]), int(kept[min(i, j)])
                if i != j and pair not in self._looked_at:
                    self._looked_at.add(pair)
                    pairs.append((*pair, round(min(cosine, 1.0), 4)))
        return sorted(pairs)

    def _embed(self, kept: np.ndarray) -> None:
        rows = np.array(sorted(set(kept.tolist()) - self._vectors.keys()), np.int64)
        for shard, here in self.gallery.images.by_shard(rows):
            found = self.whiten(self.scores.embeddings(shard)[here - shard.first])
            self._vectors |= dict(zip(here.tolist(), found, strict=True))

    def _match(self, pairs: Pairs) -> None:
        size = self.work.config.shard_size
        pieces = batched(pairs, size)
        parts = [Part(self.folder / f"{key(piece)}.parquet", len(piece)) for piece in pieces]
        mine = self.work.mine(list(zip(pieces, parts, strict=True)))
        mine = [(piece, part) for piece, part in mine if not part.done]
        found = self._matched([piece for piece, _ in mine])
        self.work.write("inside the selection", [part for _, part in mine], MATCHED, found)
        self.work.processes.wait()
        self._parts += parts
        for part in parts:
            table = pq.read_table(part.path)
            rows = zip(table["row"].to_pylist(), table["kept"].to_pylist(), strict=True)
            self._found |= dict(zip(rows, self._duplicate(table).tolist(), strict=True))

    def _matched(self, pieces: list[Pairs]) -> Iterator[tuple[int, pa.Table]]:
        rows = {row for piece in pieces for pair in piece for row in pair[:2]}
        known = _reads(self.gallery, np.array(sorted(rows), np.int64))
        batches = [batch for piece in pieces for batch in batched(piece, BATCH)]
        items = [[(known[row], known[kept]) for row, kept, _ in batch] for batch in batches]
        for batch, item, found in zip(
            batches, items, self.work.ordered(match_pairs, items), strict=True
        ):
            for values, pair in zip(found, item, strict=True):
                refuse_changed([values], [pair[0]])
            names = ("inliers", "mirrored", "affine", "ncc")
            rows = [
                {"row": row, "kept": kept, "cosine": cosine, **dict(zip(names, v, strict=True))}
                for (row, kept, cosine), v in zip(batch, found, strict=True)
            ]
            yield len(batch), pa.Table.from_pylist(rows, MATCHED)

    def _duplicate(self, table: pa.Table) -> np.ndarray:
        inliers = table["inliers"].to_numpy()
        return verdicts(
            inliers,
            exact_decimals(table["ncc"]),
            exact_decimals(table["cosine"]),
            np.zeros(len(inliers), bool),  # a lost image costs little: only what is verified goes
            self.work.config.duplicates.policy,
        )

    def table(self) -> pa.Table:
        """Rows of INSIDE: every pair that was looked at."""
        parts = [pq.read_table(part.path) for part in self._parts]
        table = pa.concat_tables([MATCHED.empty_table(), *parts])
        table = table.sort_by([("row", "ascending"), ("kept", "ascending")])
        rows = np.unique(np.concatenate([table["row"].to_numpy(), table["kept"].to_numpy()]))
        names = overlap.locations(self.gallery, rows)
        verdict = np.where(self._duplicate(table), "duplicate", "clear")
        columns = {
            **{name: table[name] for name in MATCHED.names},
            "gallery": [names[row] for row in table["row"].to_pylist()],
            "kept": [names[row] for row in table["kept"].to_pylist()],
            "verdict": verdict.tolist(),
            "rule": [RULE_VERSION] * len(table),
        }
        return pa.table({name: columns[name] for name in tables.INSIDE.names}, tables.INSIDE)


def _reads(index: Index, rows: np.ndarray) -> dict[int, Read]:
    found = {}
    for shard, here in index.images.by_shard(rows):
        found |= dict(zip(here.tolist(), reads(index, shard, here), strict=True))
    return found
