"""Near-duplicates within the selection: kept images against each other, verified like all others.

Candidates are kept images whose whitened teacher features are alike; a pair is looked at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssld.curate import tables
from ssld.curate.context import Part, Work, batched, batches, key
from ssld.curate.near_duplicates.matching import RULE_VERSION, Match, compare, verdicts
from ssld.curate.near_duplicates.reference_set import (
    Read,
    ReferenceSet,
    features_at,
    reads,
    refuse_changed,
)
from ssld.curate.near_duplicates.search import (
    Examination,
    exact_decimals,
    verdict_names,
)
from ssld.curate.near_duplicates.shortlist import nearest
from ssld.curate.sets.index import TeacherScores

MIN_COSINE = 0.5
"""Least cosine of whitened features of a pair that is looked at. 88 % of 24 edits of a photograph
reach it beside the original (benchmarks/near_duplicates.py); a copy that is missed here costs
little, as it leaks nothing, and each pair looked at costs 20 ms."""
NEIGHBOURS = 8
"""Most alike images that are looked at for one image at a time."""

MATCHED = pa.schema(
    [
        ("row", pa.int64()),  # of the pool, the one that ranks lower
        ("kept", pa.int64()),
        *tables.MATCH,
    ]
)

Pairs = list[tuple[int, int, float]]
"""(row, better ranked row, cosine)."""


def match_pairs(item: list[tuple[Read, Read]]) -> list[Match | str]:
    """The job of a worker: how each pair matches, or why an image cannot be read."""
    different = list(dict.fromkeys(read for pair in item for read in pair))
    known = dict(zip(different, features_at(different), strict=True))
    results: list[Match | str] = []
    for first, second in ((known[a], known[b]) for a, b in item):
        if isinstance(first, str):
            results.append(first)
        else:
            results.append(second if isinstance(second, str) else compare(first, [second])[0])
    return results


class WithinSelection:
    """Which kept images are near-duplicates of each other, as far as it has been asked.

    Args:
        examination: of the pool, with its scores.
    """

    def __init__(self, work: Work, examination: Examination, scores: TeacherScores) -> None:
        self.work, self.pool, self.scores = work, examination.pool, scores
        self.whiten = ReferenceSet(examination.ready.folder).whiten
        name = key(examination.ready.key, RULE_VERSION, scores.keys)
        self.folder = work.out / "work" / "inside" / name
        self._vectors: dict[int, np.ndarray] = {}
        self._asked: set[int] = set()
        self._looked_at: set[tuple[int, int]] = set()
        self._duplicates: set[tuple[int, int]] = set()
        self._files: list[Path] = []

    def near_duplicates(self, kept: np.ndarray) -> np.ndarray:
        """All near-duplicates known among `kept`, after having looked for new ones.

        Args:
            kept: int64 rows of the pool, best ranked first.

        Returns:
            int64 [m, 2]: pairs of rows.
        """
        self._match(self._candidates(kept))
        there = set(kept.tolist())
        pairs = sorted(pair for pair in self._duplicates if there.issuperset(pair))
        return np.array(pairs, np.int64).reshape(-1, 2)

    def _candidates(self, kept: np.ndarray) -> Pairs:
        """Pairs of kept images that are alike and have not been looked at."""
        asking = [i for i, row in enumerate(kept.tolist()) if row not in self._asked]
        if not asking:
            return []
        self._embed(kept)
        vectors = np.stack([self._vectors[row] for row in kept.tolist()])  # [n, d]
        count = min(NEIGHBOURS + 1, len(kept))  # an image is its own nearest
        cosines, others = nearest(vectors[asking], vectors, count)  # [asking, count]
        pairs: Pairs = []
        for i, near, near_cosines in zip(asking, others.tolist(), cosines.tolist(), strict=True):
            alike = [(j, c) for j, c in zip(near, near_cosines, strict=True) if c >= MIN_COSINE]
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
        for shard, here in self.pool.images.by_shard(rows):
            vectors = self.whiten(self.scores.embeddings(shard)[here - shard.first])
            self._vectors |= dict(zip(here.tolist(), vectors, strict=True))

    def _match(self, pairs: Pairs) -> None:
        pieces = batched(pairs, self.work.config.shard_size)
        parts = [Part(self.folder / f"{key(piece)}.parquet", piece) for piece in pieces]
        self.work.fill("inside the selection", parts, self._compare, tables.writer(MATCHED))
        for part in parts:
            table = pq.read_table(part.path)
            rows = zip(table["row"].to_pylist(), table["kept"].to_pylist(), strict=True)
            same = self._duplicate(table).tolist()
            self._duplicates |= {pair for pair, yes in zip(rows, same, strict=True) if yes}
            self._files.append(part.path)

    def _compare(self, parts: list[Part[Pairs]]) -> Iterator[pa.Table]:
        rows = np.unique([row for part in parts for *pair, _ in part.rows for row in pair])
        known = dict(zip(rows.tolist(), reads(self.pool, rows.astype(np.int64)), strict=True))
        pieces = batches(parts)
        items = [[(known[row], known[kept]) for row, kept, _ in piece] for piece in pieces]
        matched = self.work.ordered(match_pairs, items)
        for piece, item, results in zip(pieces, items, matched, strict=True):
            refuse_changed(results, [first for first, _ in item])
            rows = [
                {"row": row, "kept": kept, "cosine": cosine, **vars(match)}
                for (row, kept, cosine), match in zip(piece, results, strict=True)
            ]
            yield pa.Table.from_pylist(rows, MATCHED)

    def _duplicate(self, table: pa.Table) -> np.ndarray:
        """bool [n]: the rule's verdict on rows of MATCHED."""
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
        parts = [pq.read_table(path) for path in self._files]
        table = pa.concat_tables([MATCHED.empty_table(), *parts])
        table = table.sort_by([("row", "ascending"), ("kept", "ascending")])
        rows, kept = table["row"].to_pylist(), table["kept"].to_pylist()
        names = self.pool.locations(np.unique(np.array([*rows, *kept], np.int64)))
        columns = {
            **{name: table[name] for name in MATCHED.names},
            "gallery": [names[row] for row in rows],
            "kept": [names[row] for row in kept],
            "verdict": verdict_names(self._duplicate(table)),
            "rule": [RULE_VERSION] * len(table),
        }
        return pa.table(columns, tables.INSIDE)
