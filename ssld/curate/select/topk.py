"""The k best images of every class out of a stream of any length, in bounded memory.

The order is total: score descending, then tie-breaker ascending, then row ascending. The
tie-breaker is the first 8 bytes of the file's sha256, so that the choice among equal scores depends
on the images alone, not on their names, their order, the shards or the batches. Softmax in float32
does make equal scores: the surest images of a class often all have 1.0.

What is unusual: score and the upper half of the tie-breaker are packed into one uint64 that sorts
like both, because numpy sorts and partitions plain integers several times faster than it sorts by
two keys. The rare rows that are equal in it are then put right by the rest of the order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_RECORD = np.dtype([("key", np.uint64), ("low", np.uint32), ("row", np.int64)])
"""20 bytes an image: `_packed` of score and tie-breaker, lower half of the tie-breaker, row."""
_STAGE = 1 << 17
"""Rows that are gathered before they are dealt out to the classes, which costs per class."""
_FIRST = 1 << 13
"""Records that a class gets room for at first. Memory that is never written to costs nothing, while
arrays that are outgrown leave holes."""
_SLACK = 64
"""More room than 1.25 k for each class, so that a small k is not pruned at every turn."""


@dataclass(frozen=True, eq=False)
class Entries:
    """Images competing in classes, sorted by class, then by the total order."""

    row: np.ndarray
    """int64 [n]."""
    cls: np.ndarray
    """int32 [n]."""
    score: np.ndarray
    """float32 [n]."""
    tie_breaker: np.ndarray
    """uint64 [n]."""

    def __len__(self) -> int:
        return len(self.row)


def total_order(score: np.ndarray, tie_breaker: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Positions from the best to the last; equal ones stay as they are.

    Args: score: float32 [n], not NaN. tie_breaker: uint64 [n]. row: int64 [n]. Returns: int64 [n].
    """
    return _sorted(_packed(score, tie_breaker), tie_breaker.astype(np.uint32), row)


class TopK:
    """Offer images with `add`, in any order and any batches; `result` has the best of each class.

    A class holds at most about 1.25 k images: when it has more, the k best of them stay, and the
    worst of these is the bar for all that follow.
    """

    def __init__(self, k: int, num_classes: int) -> None:
        """Raises: ValueError: k or num_classes is below 1."""
        if k < 1 or num_classes < 1:
            raise ValueError(f"k is {k} and num_classes is {num_classes}: give at least 1 of each")
        self.k = k
        self.num_classes = num_classes
        self._room = k + k // 4 + _SLACK
        self._offered = np.zeros(num_classes, np.int64)
        self._bar = np.full(num_classes, -np.inf, np.float32)
        self._held = [np.empty(0, _RECORD)] * num_classes  # each with room for more
        self._used = [0] * num_classes
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []  # class numbers, records
        self._waiting_rows = 0

    def add(
        self, row: np.ndarray, cls: np.ndarray, score: np.ndarray, tie_breaker: np.ndarray
    ) -> None:
        """Offer images: int64 [n], an integer type [n], float32 [n] and uint64 [n].

        Raises: ValueError: a score is NaN, a class is out of range (naming the row), or the
            lengths differ.
        """
        if not len(row) == len(cls) == len(score) == len(tie_breaker):
            lengths = f"{len(row)}, {len(cls)}, {len(score)} and {len(tie_breaker)}"
            raise ValueError(
                f"row, cls, score and tie_breaker have lengths {lengths}: give equal ones"
            )
        self._check(row, cls, score)
        for start in range(0, len(row), _STAGE):
            part = slice(start, start + _STAGE)
            self._stage(row[part], cls[part], score[part], tie_breaker[part])

    def result(self) -> tuple[Entries, np.ndarray]:
        """The best of what was offered so far, at most k of each class; bool [num_classes]: whether
        more than k were offered to the class. `add` may go on afterwards."""
        self._deal()
        counts = np.minimum(self._used, self.k)
        kinds = (np.int64, np.int32, np.float32, np.uint64)
        entries = Entries(*(np.empty(counts.sum(), kind) for kind in kinds))
        start = 0
        for number in np.flatnonzero(counts).tolist():  # one by one: memory peaks here
            part = slice(start, start + int(counts[number]))
            start = part.stop
            best = self._in_order(number)
            entries.row[part], entries.cls[part] = best["row"], number
            entries.score[part] = _score(best["key"])
            entries.tie_breaker[part] = best["key"] << np.uint64(32) | best["low"]
        return entries, self._offered > self.k

    def _check(self, row: np.ndarray, cls: np.ndarray, score: np.ndarray) -> None:
        bad = np.flatnonzero(np.isnan(score))
        if len(bad):
            raise ValueError(f"row {row[bad[0]]} has the score NaN: it cannot be ranked")
        if len(cls) and not 0 <= int(cls.min()) <= int(cls.max()) < self.num_classes:
            i = np.flatnonzero((cls < 0) | (cls >= self.num_classes))[0]
            last = self.num_classes - 1
            raise ValueError(f"row {row[i]} has the class {cls[i]}: classes go from 0 to {last}")

    def _stage(
        self, row: np.ndarray, cls: np.ndarray, score: np.ndarray, tie_breaker: np.ndarray
    ) -> None:
        """Set aside what reaches the bar of its class, as records."""
        self._offered += np.bincount(cls, minlength=self.num_classes)
        # >= and not >: what equals the bar may still have the lower tie-breaker
        reaches = np.flatnonzero(score >= self._bar[cls])
        tie_breaker = tie_breaker[reaches]
        records = np.empty(len(reaches), _RECORD)
        records["key"] = _packed(score[reaches], tie_breaker)
        records["low"] = tie_breaker.astype(np.uint32)  # its lower 32 bits
        records["row"] = row[reaches]
        # numpy sorts 8 and 16 bit integers by radix, hence the smallest type
        small = cls[reaches].astype(np.min_scalar_type(self.num_classes - 1))
        self._waiting.append((small, records))
        self._waiting_rows += len(records)
        if self._waiting_rows >= _STAGE:
            self._deal()

    def _deal(self) -> None:
        """Move what was set aside to its classes."""
        if not self._waiting_rows:
            return
        cls = np.concatenate([cls for cls, _ in self._waiting])
        records = np.concatenate([records for _, records in self._waiting])
        self._waiting, self._waiting_rows = [], 0
        records = records[np.argsort(cls, kind="stable")]  # class after class
        counts = np.bincount(cls, minlength=self.num_classes)
        ends = np.cumsum(counts).tolist()
        for number in np.flatnonzero(counts).tolist():
            self._insert(number, records[ends[number] - counts[number] : ends[number]])

    def _insert(self, number: int, new: np.ndarray) -> None:
        held, used = self._held[number], self._used[number]
        if used + len(new) > self._room:  # keep the k best; only then is there a bar
            new, used = _best(np.concatenate([held[:used], new]), self.k), 0
            self._bar[number] = _score(new["key"]).min()
        self._used[number] = used + len(new)
        if used + len(new) > len(held):
            # a k beyond most class sizes should not reserve 1.25 k for each
            held = np.empty(min(max(_FIRST, 2 * (used + len(new))), self._room), _RECORD)
            held[:used] = self._held[number][:used]
            self._held[number] = held
        held[used : used + len(new)] = new

    def _in_order(self, number: int) -> np.ndarray:
        """The k best of a class, the best first."""
        held = self._held[number][: self._used[number]]
        if len(held) > self.k:
            held = _best(held, self.k)
        return held[_sorted(np.ascontiguousarray(held["key"]), held["low"], held["row"])]


def _best(records: np.ndarray, k: int) -> np.ndarray:
    """The k best of more than k records, in no particular order."""
    key = np.ascontiguousarray(records["key"])
    last = np.partition(key, k - 1)[k - 1]  # the k-th best, without sorting the others
    chosen = key < last
    # of those that share its key as many as there is room for, by the rest of the order
    tied = np.flatnonzero(key == last)
    by_rest = np.lexsort((records["row"][tied], records["low"][tied]))
    chosen[tied[by_rest[: k - np.count_nonzero(chosen)]]] = True
    return records[chosen]


def _sorted(key: np.ndarray, low: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Positions by key, then low, then row, then position: int64 [n]."""
    order = np.argsort(key)
    ranked = key[order]
    same = ranked[1:] == ranked[:-1]
    if same.any():
        tied = np.zeros(len(key), bool)  # positions in `order` that share a key with a neighbour
        tied[1:] = same
        tied[:-1] |= same
        group = order[tied]
        order[tied] = group[np.lexsort((group, row[group], low[group], key[group]))]
    return order


def _packed(score: np.ndarray, tie_breaker: np.ndarray) -> np.ndarray:
    """uint64 [n]: 32 bits that grow as the score falls, then the upper 32 of the tie-breaker."""
    bits = (score.astype(np.float32) + np.float32(0)).view(np.uint32)  # + 0 turns -0 into 0
    return (_falling(bits).astype(np.uint64) << np.uint64(32)) | (tie_breaker >> np.uint64(32))


def _score(key: np.ndarray) -> np.ndarray:
    return _falling((key >> np.uint64(32)).astype(np.uint32)).view(np.float32)


def _falling(bits: np.ndarray) -> np.ndarray:
    """The bits of float32 numbers <-> uint32 [n] that grow as the numbers fall; its own inverse.

    IEEE floats of one sign sort like their bits; turning all but the sign of the positive ones
    makes them fall, and leaves them below the negative ones, which fall as they are.
    """
    return np.where(bits >> 31, bits, bits ^ np.uint32(0x7FFFFFFF))
