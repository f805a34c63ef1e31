"""The order of samples: an endless stream that is a pure function of (seed, epoch).

Position p of the stream says which source, which image of it and which view of that image. Step t
of a run takes positions [t·B, (t+1)·B), so that resuming is an index and nothing is dropped at the
end of an epoch.
"""

from __future__ import annotations

import hashlib

import numpy as np


class Sampler:
    """Where every sample of a run comes from.

    An epoch has as many samples as there are images. Each source's own stream is a concatenation of
    its permutations; an epoch takes the next part of it, and mixes what it took from all sources.
    The view number is how many of a source's permutations were used up before.

    Args:
        sizes: number of images in each source.
        fractions: share of each epoch drawn from each source; by default its share of the images.
    """

    def __init__(self, sizes: list[int], fractions: list[float] | None, seed: int) -> None:
        self.sizes = sizes
        self.seed = seed
        self.samples_per_epoch = sum(sizes)
        self.counts = _shares(sizes, fractions)
        self._cached: dict[int, np.ndarray] = {}

    def draw(self, start: int, stop: int) -> np.ndarray:
        """Positions [start, stop) -> int64 [stop - start, 3]: source, index, view."""
        parts = []
        while start < stop:
            epoch, offset = divmod(start, self.samples_per_epoch)
            taken = min(stop - start, self.samples_per_epoch - offset)
            parts.append(self._epoch(epoch)[offset : offset + taken])
            start += taken
        return np.concatenate(parts) if parts else np.empty((0, 3), np.int64)

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._cached:
            rows = np.concatenate([self._from_source(i, epoch) for i in range(len(self.sizes))])
            mixed = rows[permutation(len(rows), f"{self.seed}/epoch/{epoch}")]
            self._cached = {k: v for k, v in self._cached.items() if k == epoch - 1}
            self._cached[epoch] = mixed
        return self._cached[epoch]

    def _from_source(self, source: int, epoch: int) -> np.ndarray:
        """Rows [counts[source], 3] that an epoch takes from one source's own stream."""
        size, count = self.sizes[source], self.counts[source]
        start, stop, parts = epoch * count, (epoch + 1) * count, []
        while start < stop:
            cycle, offset = divmod(start, size)
            taken = min(stop - start, size - offset)
            order = permutation(size, f"{self.seed}/source/{source}/{cycle}")
            rows = np.empty((taken, 3), np.int64)
            rows[:, 0], rows[:, 1], rows[:, 2] = source, order[offset : offset + taken], cycle
            parts.append(rows)
            start += taken
        return np.concatenate(parts) if parts else np.empty((0, 3), np.int64)


def _shares(sizes: list[int], fractions: list[float] | None) -> list[int]:
    """Whole numbers that add up to sum(sizes), by largest remainder."""
    if fractions is None:
        return list(sizes)
    total = sum(sizes)
    exact = [total * f / sum(fractions) for f in fractions]
    counts = [int(x) for x in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def permutation(size: int, key: str) -> np.ndarray:
    """int64 [size], a function of its arguments alone."""
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
    return generator.permutation(size)
