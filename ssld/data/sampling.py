"""The order of samples: an endless stream that is a pure function of (seed, epoch).

Position p of the stream says which source, which image of it and which view of that image. Step t
of a run takes positions [t·B, (t+1)·B), so that resuming is an index and nothing is dropped at the
end of an epoch.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np


class Order(Protocol):
    """Says what is at each position of the stream."""

    samples_per_epoch: int

    def draw(self, start: int, stop: int) -> np.ndarray:
        """Positions [start, stop) -> int64 [stop - start, 3]: source, index, view."""
        ...


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


class ApartSampler:
    """Two kinds of sources, of which each forward pass sees one only.

    Of the `passes` of a step the first ones are of the second kind, so that running statistics end
    with the first. Each kind has its own `Sampler`, whose stream is taken in order.

    Args:
        first, second: of the sources of each kind; those of the second are numbered after those of
            the first.
        pass_size: samples of a pass over all processes.
        second_passes: of the second kind in a step.
    """

    def __init__(
        self, first: Sampler, second: Sampler, *, pass_size: int, passes: int, second_passes: int
    ) -> None:
        self.first, self.second = first, second
        self.pass_size, self.passes, self.second_passes = pass_size, passes, second_passes
        self.samples_per_epoch = first.samples_per_epoch + second.samples_per_epoch

    def draw(self, start: int, stop: int) -> np.ndarray:
        """See `Order`."""
        parts = []
        while start < stop:
            number, offset = divmod(start, self.pass_size)
            taken = min(stop - start, self.pass_size - offset)
            parts.append(self._of_a_pass(*divmod(number, self.passes), offset, taken))
            start += taken
        return np.concatenate(parts) if parts else np.empty((0, 3), np.int64)

    def _of_a_pass(self, step: int, number: int, offset: int, taken: int) -> np.ndarray:
        is_second = number < self.second_passes
        sampler = self.second if is_second else self.first
        before = step * self.second_passes + number  # passes of this kind
        if not is_second:
            before = step * (self.passes - self.second_passes) + number - self.second_passes
        start = before * self.pass_size + offset
        rows = sampler.draw(start, start + taken)
        return rows + np.array([len(self.first.sizes), 0, 0]) if is_second else rows


class Beside:
    """Two orders side by side: each forward pass takes so many of the one, then of the other.

    Args:
        second: its sources are numbered after those of the first.
        sources: of the first.
        sizes: samples of each in a pass over all processes.
    """

    def __init__(
        self, first: Order, second: Order, *, sources: int, sizes: tuple[int, int]
    ) -> None:
        self.first, self.second, self.sources, self.sizes = first, second, sources, sizes
        self.samples_per_epoch = first.samples_per_epoch

    def draw(self, start: int, stop: int) -> np.ndarray:
        """Whole passes; see `Order`."""
        size, parts = sum(self.sizes), []
        assert start % size == stop % size == 0, "only whole passes are drawn"
        for number in range(start // size, stop // size):
            one, other = (
                order.draw(number * count, (number + 1) * count)
                for order, count in zip((self.first, self.second), self.sizes, strict=True)
            )
            parts += [one, other + np.array([self.sources, 0, 0])]
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
