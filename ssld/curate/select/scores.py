"""What the teacher said, as `score.py` wrote it. Stays free of torch: workers import this."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssld.curate.sets.images import Shard, key
from ssld.curate.sets.index import Index


class Scores:
    """The finished scores of the gallery, shard by shard."""

    def __init__(self, out: Path, index: Index, scorer_key: str) -> None:
        self.index = index
        self.folder = out / "scores"
        self.keys = [key(scorer_key, each) for each in index.keys]

    def path(self, shard: Shard) -> Path:
        return self.folder / f"{shard.number:06d}-{self.keys[shard.number]}.parquet"

    def read(self, columns: list[str]) -> Iterator[tuple[Shard, pa.Table]]:
        """Each shard's rows."""
        for shard in self.index.images.shards:
            yield shard, pq.read_table(self.path(shard), columns=columns)

    def embeddings(self, shard: Shard) -> np.ndarray:
        """float16 [rows of the shard, d]; NaN where a file cannot be read."""
        column = pq.read_table(self.path(shard), columns=["embedding"])["embedding"]
        whole = column.combine_chunks()
        readable = whole.is_valid().to_numpy(zero_copy_only=False)
        values = whole.drop_null().flatten().to_numpy().reshape(max(1, readable.sum()), -1)
        found = np.full((len(whole), values.shape[1]), np.nan, np.float16)
        found[readable] = values[: readable.sum()]
        return found
