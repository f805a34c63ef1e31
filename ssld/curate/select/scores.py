"""What the teacher said, as `score.py` wrote it. Stays free of torch: workers import this."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from ssld.curate.context import key
from ssld.curate.sets.images import Shard, ShardTable
from ssld.curate.sets.index import Index
from ssld.curate.tables import TOP


class TeacherScores(ShardTable):
    """The teacher scores of the pool, shard by shard."""

    def __init__(self, out: Path, index: Index, scorer_key: str) -> None:
        keys = [key(scorer_key, each) for each in index.keys]
        super().__init__(index.images, out / "scores", "", keys)

    def embeddings(self, shard: Shard) -> np.ndarray:
        """float16 [rows of the shard, d]; NaN where a file cannot be read."""
        whole = self.table(shard, ["embedding"])["embedding"].combine_chunks()
        readable = whole.is_valid().to_numpy(zero_copy_only=False)
        values = whole.drop_null().flatten().to_numpy().reshape(max(1, readable.sum()), -1)
        embeddings = np.full((len(whole), values.shape[1]), np.nan, np.float16)
        embeddings[readable] = values[: readable.sum()]
        return embeddings


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
