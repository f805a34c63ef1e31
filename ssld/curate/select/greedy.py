"""Which images are selected: the k best of each class without near-duplicates (SSLD section 3.3.4).

Looking for near-duplicates is a thousand times dearer than ranking, so it is done last and least:
images are examined in the order of their scores until k of their class survive, and compared among
each other only once they would be kept. The outcome is that of having examined everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ssld.curate.select.topk import Entries, total_order

Best = Callable[[int], tuple[Entries, np.ndarray]]
"""depth -> the best `depth` entries of each class; bool [classes]: whether the class has more."""
Contaminated = Callable[[np.ndarray], np.ndarray]
"""int64 [n] rows, rising, each asked once -> bool [n]: near-duplicate of a reference image."""
NearDuplicates = Callable[[np.ndarray], np.ndarray]
"""int64 [n] rows, the best first, each once -> int64 [m, 2]: all near-duplicate pairs among them,
in any order."""

_UNKNOWN, _CLEAR, _CONTAMINATED = range(3)


@dataclass(frozen=True, eq=False)
class Selection:
    """What `select` decided. Every other image is beyond the k best of its classes."""

    row: np.ndarray
    """int64 [n], each once, sorted by class and rank."""
    cls: np.ndarray
    """int32 [n]: the class that the image is listed under, its most probable one of those that had
    a place for it."""
    rank: np.ndarray
    """int32 [n], from 1, among all that took a place in the class; one is left out where its image
    is listed under another class."""
    score: np.ndarray
    """float32 [n], of the class listed."""
    achieved: np.ndarray
    """int64 [classes]: places taken, at most k."""
    removed: np.ndarray
    """int64 [m, 2]: rows that had a place, and for each the best of the kept images it was found
    to be a near-duplicate of; sorted by row."""
    contaminated: np.ndarray
    """int64 [l]: rows that were found to be near-duplicates of reference images, rising."""
    examined: int
    """Rows that `contaminated` was asked about."""


def select(
    best: Best,
    k: int,
    contaminated: Contaminated,
    near_duplicates: NearDuplicates,
    *,
    depth: int | None = None,
) -> Selection:
    """Choose at most k images of each class.

    Definition: go through all entries (image, class), score descending, then tie-breaker ascending,
    row ascending, class ascending. Keep an entry if its class has fewer than k kept entries, its
    image is no near-duplicate of a reference image, and no near-duplicate of another image that was
    kept before. Each kept entry takes a place of its class; the image is listed under its first.

    Why asking little gives the same: a decision depends on better ranked entries only. (1) The
    entries of a class are examined from its best on until k are kept; those not examined rank
    behind these k and find no place whatever they are. (2) Some pairs stay unknown. Suppose the
    outcome first differs from full knowledge at some entry. All before it being equal, an unknown
    pair of its image with one kept before must be what differs, so both images are kept here. But
    it ends only when `near_duplicates` finds nothing new among all that are kept: contradiction.
    A pair found may give back what another one took (the image that displaced it is displaced
    itself), which is why every round decides everything anew.

    Args:
        best: the entries; asked again, twice as deep, when a class runs out of them.
        depth: of the first call of `best`; changes no result.

    Raises: ValueError: k or depth is below 1.
    """
    depth = k + k // 4 + 16 if depth is None else depth  # most classes lose a few
    if k < 1 or depth < 1:
        raise ValueError(f"k is {k} and depth is {depth}: give at least 1 of each")
    rounds = _Rounds(best, k, depth)
    while True:
        kept = rounds.fill(contaminated)
        if not rounds.learn(near_duplicates(rounds.rows_of(kept))):
            return rounds.selection(kept)


class _Rounds:
    """What is known between the rounds. Entries are counted as in `best`: by class, then order."""

    def __init__(self, best: Best, k: int, depth: int) -> None:
        self.best = best
        self.k = k
        self.rows, self.state = np.empty(0, np.int64), np.empty(0, np.int8)  # [images], rising
        self.pairs = np.empty((0, 2), np.int64)  # rows, each pair once
        self.neighbours: dict[int, list[int]] = {}  # the same by row
        self.removed: dict[int, int] = {}  # row -> the kept row it duplicates, last decision
        self._load(depth)
        self.examined = np.zeros(len(self.cut), np.int64)  # [classes]: entries from the best on

    def fill(self, contaminated: Contaminated) -> np.ndarray:
        """Examine until every class is full or has no more; bool [entries]: those kept."""
        while True:
            kept = self._decide()
            # [classes]: places still free, and entries not examined yet
            lacking = self.k - np.bincount(self.entries.cls[kept], minlength=len(self.cut))
            left = self.sizes - self.examined
            if np.any((lacking > 0) & (left == 0) & self.cut):
                self._load(2 * self.depth)
                continue
            more = np.minimum(lacking, left)
            if not more.any():
                return kept
            self._ask(self._next(more), contaminated)
            self.examined += more

    def learn(self, pairs: np.ndarray) -> bool:
        """Take in rows that are near-duplicates, int64 [m, 2]; whether any pair is new."""
        known = len(self.pairs)
        both = np.concatenate([self.pairs, np.asarray(pairs, np.int64).reshape(-1, 2)])
        self.pairs = np.unique(np.sort(both, axis=1), axis=0)
        assert (self.pairs[:, 0] != self.pairs[:, 1]).all(), "an image as its own near-duplicate"
        self.neighbours = {}
        for pair in self.pairs.tolist():
            for row, other in (pair, pair[::-1]):
                self.neighbours.setdefault(row, []).append(other)
        return len(self.pairs) > known

    def rows_of(self, kept: np.ndarray) -> np.ndarray:
        """Rows of the images of the kept entries, the best first, each once."""
        return self.entries.row[self._listed(kept)]

    def selection(self, kept: np.ndarray) -> Selection:
        listed = np.sort(self._listed(kept))  # back to by class, then order
        rank = self._count_within(kept)[listed].astype(np.int32)
        removed = sorted(self.removed.items())
        return Selection(
            row=self.entries.row[listed],
            cls=self.entries.cls[listed],
            rank=rank,
            score=self.entries.score[listed],
            achieved=np.bincount(self.entries.cls[kept], minlength=len(self.cut)),
            removed=np.array(removed, np.int64).reshape(-1, 2),
            contaminated=self.rows[self.state == _CONTAMINATED],
            examined=int(np.count_nonzero(self.state)),
        )

    def _load(self, depth: int) -> None:
        """Fetch entries; those of before come again, in the same order."""
        self.depth = depth
        self.entries, self.cut = self.best(depth)  # [entries], bool [classes]: there are more
        self.sizes = np.bincount(self.entries.cls, minlength=len(self.cut))
        self.starts = np.cumsum(self.sizes) - self.sizes
        # sorted by class before, equal ones of the total order stay sorted by class
        self.order = total_order(self.entries.score, self.entries.tie_breaker, self.entries.row)
        # an image with several classes has several entries, but one state: image [entries]
        rows, self.image = np.unique(self.entries.row, return_inverse=True)
        state = np.full(len(rows), _UNKNOWN, np.int8)
        state[np.searchsorted(rows, self.rows)] = self.state
        self.rows, self.state = rows, state

    def _next(self, more: np.ndarray) -> np.ndarray:
        """The next entries to examine; int64 [classes]: how many of each class."""
        before = np.cumsum(more) - more
        return np.arange(more.sum()) + np.repeat(self.starts + self.examined - before, more)

    def _ask(self, chosen: np.ndarray, contaminated: Contaminated) -> None:
        """Ask about the images of the chosen entries that are not known yet."""
        asked = np.zeros(len(self.rows), bool)
        asked[self.image[chosen]] = True
        asked &= self.state == _UNKNOWN
        rows = self.rows[asked]
        if len(rows):
            verdicts = np.asarray(contaminated(rows), bool)
            assert verdicts.shape == rows.shape, f"{len(rows)} asked, {verdicts.shape} answered"
            self.state[asked] = np.where(verdicts, _CONTAMINATED, _CLEAR)

    def _decide(self) -> np.ndarray:
        """Greedily, with what is known: bool [entries], those kept.

        Entries of images without known pairs need no loop: such an entry is kept if fewer than k of
        those before it in its class are. Only the few others are gone through one by one.
        """
        within = np.arange(len(self.entries)) - np.repeat(self.starts, self.sizes)  # place in class
        allowed = (self.state == _CLEAR)[self.image] & (
            within < np.repeat(self.examined, self.sizes)
        )
        self.removed = {}
        if len(self.pairs):
            allowed[self._displaced(allowed)] = False
        return allowed & (self._count_within(allowed) <= self.k)

    def _displaced(self, allowed: np.ndarray) -> list[int]:
        """Entries that have a place but are near-duplicates of images kept before."""
        paired = np.zeros(len(self.rows), bool)  # [images]
        paired[np.searchsorted(self.rows, self.pairs)] = True
        walk = self.order[(paired[self.image] & allowed)[self.order]]  # entries, the best first
        ahead = self._count_within(allowed)[walk]  # counts the entry itself too
        lost = [0] * len(self.cut)  # displaced so far, per class
        kept: dict[int, int] = {}  # row -> when
        displaced = []
        columns = (walk, self.entries.row[walk], self.entries.cls[walk], ahead)
        for entry, row, cls, count in zip(*(c.tolist() for c in columns), strict=True):
            # its class is full, or the image has its place already (and cannot displace itself)
            if count - lost[cls] > self.k or row in kept:
                continue
            by = [other for other in self.neighbours[row] if other in kept]
            if by:
                lost[cls] += 1
                displaced.append(entry)
                self.removed[row] = min(by, key=kept.__getitem__)
            else:
                kept[row] = len(kept)
        return displaced

    def _count_within(self, marked: np.ndarray) -> np.ndarray:
        """Marked entries of the same class up to and including each: int64 [entries]."""
        total = np.concatenate([[0], np.cumsum(marked)])
        return total[1:] - np.repeat(total[self.starts], self.sizes)

    def _listed(self, kept: np.ndarray) -> np.ndarray:
        """The first kept entry of each image, the best first."""
        ranked = self.order[kept[self.order]]
        first = np.full(len(self.rows), -1)
        first[self.image[ranked[::-1]]] = ranked[::-1]  # of several, the last written stays
        return ranked[first[self.image[ranked]] == ranked]
