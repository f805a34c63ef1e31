"""The lazy selection, against the greedy one that knows everything, on random small galleries."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from ssld.curate.select.greedy import Selection, select
from ssld.curate.select.topk import Entries, TopK

SEEDS = range(120)


@dataclass
class Gallery:
    """Images with `p` classes each, who resembles whom, and who has leaked."""

    seed: int
    p: int = 1
    classes: int = 3
    n: int = 30
    similar: set[tuple[int, int]] = field(default_factory=set)
    """Rows, the smaller first."""
    leaks: set[int] = field(default_factory=set)
    asked: list[int] = field(default_factory=list)
    loads: int = 0

    def __post_init__(self) -> None:
        self.rng = rng = np.random.default_rng(self.seed)
        levels = rng.integers(1, 12)  # few: equal scores
        score = rng.integers(0, levels, (self.n, self.p)) / 16
        self.score: np.ndarray = -np.sort(-score, axis=1).astype(np.float32)
        draws = [rng.permutation(self.classes)[: self.p] for _ in range(self.n)]
        self.cls = np.array(draws, np.int32).reshape(self.n, self.p)
        self.tie = rng.integers(0, rng.choice([2, 2**40]), self.n, np.uint64)
        self.row = np.arange(self.n)  # what the image is called

    def entries(self) -> tuple[np.ndarray, ...]:
        """row, cls, score, tie of all entries, in no particular order."""
        order = self.rng.permutation(self.n * self.p)
        row, tie = np.repeat(self.row, self.p), np.repeat(self.tie, self.p)
        columns = (row, self.cls.ravel(), self.score.ravel(), tie)
        return tuple(column[order] for column in columns)

    def best(self, depth: int) -> tuple[Entries, np.ndarray]:
        self.loads += 1
        top, entries = TopK(depth, self.classes), self.entries()
        cut = self.rng.integers(0, len(entries[0]) + 1)  # batches of any size
        for part in (slice(cut), slice(cut, None)):
            top.add(*(column[part] for column in entries))
        return top.result()

    def leaked(self, rows: np.ndarray) -> np.ndarray:
        asked = rows.tolist()
        assert asked and asked == sorted(set(asked)) and not set(asked) & set(self.asked)
        self.asked += asked
        return np.array([row in self.leaks for row in asked])

    def copies(self, rows: np.ndarray) -> np.ndarray:
        kept = rows.tolist()
        assert len(set(kept)) == len(kept)
        found = [pair for pair in self.similar if set(pair) <= set(kept)]
        turned = [pair[:: self.rng.choice([-1, 1])] for pair in self.rng.permutation(found)]
        return np.array(turned, np.int64).reshape(-1, 2)

    def select(self, k: int, depth: int | None = None) -> Selection:
        self.asked, self.loads = [], 0
        return select(self.best, k, self.leaked, self.copies, depth=depth)


def gallery(seed: int, *, p=1, degree=1.5, leaks=0.15) -> Gallery:
    rng = np.random.default_rng((seed, 1))
    n, classes = int(rng.integers(0, 40)), int(rng.integers(p, p + 4))
    made = Gallery(seed, p, classes, n)
    pairs = np.sort(
        rng.integers(0, n, (int(degree * n), 2)) if n else np.empty((0, 2), int), axis=1
    )
    made.similar = {(a, b) for a, b in pairs.tolist() if a != b}
    made.leaks = set(np.flatnonzero(rng.random(n) < leaks).tolist())
    return made


@dataclass
class Greedy:
    """The definition, word by word, knowing everything."""

    of: Gallery
    k: int
    places: dict[int, list[int]] = field(default_factory=dict)
    """Class -> rows in the order kept."""
    listed: dict[int, tuple] = field(default_factory=dict)
    """Row -> class, rank, score, of the first kept entry."""
    removed: dict[int, set[int]] = field(default_factory=dict)
    """Row -> the kept rows that it resembles."""
    before_full: list[set[int]] = field(default_factory=list)
    """Per class, rows up to the one that filled it."""

    def __post_init__(self) -> None:
        self.places = {c: [] for c in range(self.of.classes)}
        self.before_full = [set() for _ in self.places]
        columns = (x.tolist() for x in self.of.entries())
        entries = sorted(zip(*columns, strict=True), key=lambda e: (-e[2], e[3], e[0], e[1]))
        for row, cls, score, _ in entries:
            self.consider(row, cls, score)

    def consider(self, row: int, cls: int, score: float) -> None:
        if len(self.places[cls]) == self.k:
            return
        self.before_full[cls].add(row)
        if row in self.of.leaks:
            return
        pairs = [pair for pair in self.of.similar if row in pair]
        by = {sum(pair) - row for pair in pairs} & set(self.listed)
        if by:
            self.removed.setdefault(row, set()).update(by)
            return
        self.places[cls].append(row)
        self.listed.setdefault(row, (cls, len(self.places[cls]), score))


def listed(found: Selection) -> dict[int, list]:
    columns = (found.row, found.cls, found.rank, found.score)
    return {row: rest for row, *rest in zip(*(x.tolist() for x in columns), strict=True)}


def same(one: Selection, other: Selection) -> None:
    for name in ("row", "cls", "rank", "score", "achieved", "removed"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize("degree", [0, 0.5, 1.5, 4])
def test_equals_the_greedy_that_knows_everything(p, degree):
    for seed in SEEDS:
        given = gallery(seed, p=p, degree=degree)
        k = int(given.rng.integers(1, 8))
        found, expected = given.select(k), Greedy(given, k)
        assert listed(found) == {row: list(rest) for row, rest in expected.listed.items()}
        assert found.achieved.tolist() == [len(rows) for rows in expected.places.values()]
        assert [row for row, _ in found.removed.tolist()] == sorted(expected.removed)
        assert all(by in expected.removed[row] for row, by in found.removed.tolist())
        assert found.contaminated.tolist() == sorted(given.leaks & set(given.asked))
        assert found.examined == len(given.asked)
        order = np.lexsort((found.rank, found.cls))
        assert order.tolist() == list(range(len(order)))


def test_depth_changes_nothing():
    for seed in SEEDS:
        given = gallery(seed, p=1 + seed % 3)
        shallow, usual, whole = (given.select(4, depth) for depth in (1, None, 1000))
        same(shallow, whole)
        same(usual, whole)
        assert given.loads == 1  # of the whole


def test_a_class_that_runs_out_is_read_deeper():
    given = Gallery(0, classes=1, n=40)
    given.leaks = set(range(1, 40))
    found = given.select(3, depth=3)
    assert found.row.tolist() == [0] and given.loads == 5  # 3, 6, 12, 24, 48
    assert found.examined == 40 and found.contaminated.tolist() == list(range(1, 40))


def test_numbers_of_rows_change_nothing_where_ties_differ():
    for seed in SEEDS:
        given = gallery(seed, p=1 + seed % 3)
        given.tie = given.rng.permutation(given.n).astype(np.uint64)
        before = given.select(4)
        ties = dict(zip(given.row.tolist(), given.tie.tolist(), strict=True))
        expected = {ties[row]: rest for row, rest in listed(before).items()}
        new = given.rng.permutation(10 * given.n)[: given.n]
        given.row = new
        renamed = [sorted((int(new[a]), int(new[b]))) for a, b in given.similar]
        given.similar = {(a, b) for a, b in renamed}
        given.leaks = {int(new[row]) for row in given.leaks}
        ties = dict(zip(new.tolist(), given.tie.tolist(), strict=True))
        assert {ties[row]: rest for row, rest in listed(given.select(4)).items()} == expected


def with_one_more(given: Gallery) -> Gallery:
    more = Gallery(given.seed, 1, given.classes, given.n + 1, given.similar, given.leaks)
    rng = np.random.default_rng((given.seed, 2))
    for name in ("score", "cls", "tie"):
        setattr(more, name, np.concatenate([getattr(given, name), getattr(more, name)[-1:]]))
    more.score[-1], more.cls[-1] = rng.random(), rng.integers(0, given.classes)
    return more


def test_an_unrelated_image_takes_at_most_the_last_place_of_its_class():
    outcomes = {"not selected": 0, "one more": 0, "the last falls out": 0}
    for seed in SEEDS:
        given = gallery(seed, degree=0.3)
        more = with_one_more(given)
        old, new = listed(given.select(4)), listed(more.select(4))
        mine = new.pop(given.n, None)
        fallen = set(old) - set(new)
        related = {row for pair in given.similar for row in pair}
        if mine is None:
            outcomes["not selected"] += 1
            assert new == old
            continue
        if fallen & related:  # an image that it displaced from the selection may come back
            continue
        outcomes["the last falls out" if fallen else "one more"] += 1
        assert {row: rest[0] for row, rest in new.items()} == {
            row: rest[0] for row, rest in old.items() if row not in fallen
        }
        assert [old[row][:2] for row in fallen] == [[mine[0], 4]] * len(fallen)
    assert min(outcomes.values()) > 10, outcomes


@pytest.mark.parametrize("p", [1, 3])
def test_nothing_behind_a_full_class_is_examined(p):
    for seed in SEEDS:
        given = gallery(seed, p=p, degree=0, leaks=0.4)
        given.select(4, depth=2)
        assert set(given.asked) == set().union(*Greedy(given, 4).before_full)


def test_nothing_behind_a_full_class_is_examined_where_copies_come_in_twos():
    for seed in SEEDS:
        given = gallery(seed, leaks=0.2)
        twos = given.rng.permutation(given.n)[: given.n // 2 * 2].reshape(-1, 2)
        given.similar = {(min(a, b), max(a, b)) for a, b in twos.tolist()}
        given.select(4)
        assert set(given.asked) == set().union(*Greedy(given, 4).before_full)


def chain(scores: list[float], pairs: set[tuple[int, int]], classes: list[int]) -> Gallery:
    made = Gallery(0, classes=max(classes) + 1, n=len(scores), similar=pairs)
    made.score = np.array(scores, np.float32)[:, None]
    made.cls = np.array(classes, np.int32)[:, None]
    return made


def test_who_displaces_a_displacer_gives_back():
    """Of three in a row only the ends are kept, though the middle one resembles both."""
    found = chain([0.9, 0.8, 0.7], {(0, 1), (1, 2)}, [0, 0, 0]).select(3)
    assert found.row.tolist() == [0, 2] and found.removed.tolist() == [[1, 0]]


def test_a_place_given_back_in_another_class_pushes_out_the_last():
    """1 is like 0 and 4 like 3; so 2 and 5 enter, but 2 is like 3, so 4 comes back and 5 goes."""
    made = chain([1.0, 0.9, 0.8, 0.5, 0.4, 0.3], {(0, 1), (3, 4), (2, 3)}, [2, 0, 0, 1, 3, 3])
    found = made.select(1)
    assert listed(found) == {row: [c, 1, made.score[row]] for row, c in ((2, 0), (0, 2), (4, 3))}
    assert found.removed.tolist() == [[1, 0], [3, 2]] and 5 in made.asked


def test_a_copy_in_another_class_is_removed_by_score_not_by_class():
    found = chain([0.6, 0.7], {(0, 1)}, [0, 1]).select(1)
    assert found.row.tolist() == [1] and found.achieved.tolist() == [0, 1]


def test_a_copy_is_said_to_be_of_the_best_it_resembles():
    found = chain([0.7, 0.8, 0.6, 0.9], {(0, 2), (1, 2), (2, 3)}, [0, 0, 1, 0]).select(2)
    assert found.row.tolist() == [3, 1] and found.removed.tolist() == [[2, 3]]


def test_an_image_in_two_classes_takes_two_places_and_is_listed_once():
    made = Gallery(0, p=2, classes=2, n=2)
    made.cls, made.tie = np.array([[0, 1], [1, 0]], np.int32), np.array([1, 2], np.uint64)
    made.score = np.array([[0.9, 0.1], [0.8, 0.2]], np.float32)
    found = made.select(2)
    assert listed(found) == {0: [0, 1, pytest.approx(0.9)], 1: [1, 1, pytest.approx(0.8)]}
    assert found.achieved.tolist() == [2, 2]


def test_no_image_at_all():
    found = Gallery(0, classes=2, n=0).select(3)
    assert len(found.row) == 0 and found.achieved.tolist() == [0, 0] and found.examined == 0
    assert found.removed.shape == (0, 2) and found.contaminated.shape == (0,)


def test_refusals():
    for k, depth in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least 1 of each"):
            Gallery(0).select(k, depth)
