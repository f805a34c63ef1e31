"""The streaming top k, against sorting everything in Python and in numpy."""

from __future__ import annotations

import numpy as np
import pytest

import ssld.curate.select.topk
from ssld.curate.select.topk import Entries, TopK, total_order

TIES = np.array([0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1], np.uint64)
"""Equal in both halves, in one, in none."""
SCORES = np.array([-np.inf, -1, -0.0, 0, 1e-40, 0.5, np.nextafter(np.float32(1), 0), 1, np.inf])

Offers = tuple[np.ndarray, ...]
"""row, cls, score, tie."""


@pytest.fixture
def tiny_stages(monkeypatch):
    """Deal out and prune after a handful of rows already."""
    monkeypatch.setattr(ssld.curate.select.topk, "_STAGE", 7)
    monkeypatch.setattr(ssld.curate.select.topk, "_SLACK", 0)


def offers(rng: np.random.Generator, n: int, classes: int) -> Offers:
    """Few different scores and ties, rows that each occur once."""
    score = rng.choice(SCORES[: rng.integers(1, len(SCORES) + 1)], n).astype(np.float32)
    cls = rng.integers(0, classes, n).astype(np.int32)
    return rng.permutation(10 * n)[:n], cls, score, rng.choice(TIES[: rng.integers(1, 7)], n)


def naive(offered: Offers, k: int, classes: int) -> tuple[list[tuple], list[bool]]:
    by_class: list[list[tuple]] = [[] for _ in range(classes)]
    for row, cls, score, tie in zip(*(x.tolist() for x in offered), strict=True):
        by_class[cls].append((-score, tie, row))
    best = [(c, *entry) for c, entries in enumerate(by_class) for entry in sorted(entries)[:k]]
    return best, [len(entries) > k for entries in by_class]


def listed(entries: Entries) -> list[tuple]:
    columns = (entries.cls, -entries.score, entries.tie_breaker, entries.row)
    return list(zip(*(x.tolist() for x in columns), strict=True))


def streamed(rng: np.random.Generator, offered: Offers, k: int, classes: int) -> TopK:
    """Offered in a random order and in batches of random sizes, empty ones too."""
    top, order = TopK(k, classes), rng.permutation(len(offered[0]))
    cuts = np.sort(rng.integers(0, len(order) + 1, rng.integers(0, 6)))
    for part in np.split(order, cuts):
        top.add(*(column[part] for column in offered))
    return top


@pytest.mark.parametrize("seed", range(120))
def test_any_order_and_batches_give_the_sorted_best(seed, tiny_stages):
    rng = np.random.default_rng(seed)
    k, classes = int(rng.integers(1, 12)), int(rng.integers(1, 5))
    offered = offers(rng, int(rng.integers(0, 120)), classes)
    expected, more = naive(offered, k, classes)
    for _ in range(3):
        entries, cut = streamed(rng, offered, k, classes).result()
        assert listed(entries) == expected
        assert cut.tolist() == more


@pytest.mark.parametrize("classes", [3, 300, 70_000])  # 8, 16 and 32 bit class numbers
def test_equals_lexsort_over_everything(classes):
    rng = np.random.default_rng(classes)
    n, k = 300_000, 50
    some = rng.integers(0, classes, 500).astype(np.int32)
    cls = some[(500 * rng.random(n) ** 3).astype(int)]  # a few large, many small, most empty
    score = np.round(rng.random(n, np.float32), 3)  # 400 equal ones each
    row, tie = rng.permutation(n), rng.integers(0, 2**64, n, np.uint64)
    order = np.lexsort((row, tie, -score, cls))
    first = np.searchsorted(cls[order], cls[order])
    order = order[np.arange(n) - first < k]
    entries, cut = streamed(rng, (row, cls, score, tie), k, classes).result()
    for found, column in ((entries.row, row), (entries.cls, cls), (entries.tie_breaker, tie)):
        np.testing.assert_array_equal(found, column[order])
    np.testing.assert_array_equal(entries.score, score[order])
    np.testing.assert_array_equal(cut, np.bincount(cls, minlength=classes) > k)


def test_types_and_nothing_offered():
    entries, cut = TopK(3, 2).result()
    assert len(entries) == 0 and cut.tolist() == [False, False]
    types = [entries.row.dtype, entries.cls.dtype, entries.score.dtype, entries.tie_breaker.dtype]
    assert types == [np.int64, np.int32, np.float32, np.uint64]


@pytest.mark.parametrize("seed", range(20))
def test_goes_on_after_a_result(seed, tiny_stages):
    rng = np.random.default_rng(seed)
    offered, top = offers(rng, 90, 3), TopK(5, 3)
    for start in range(0, 90, 30):
        top.add(*(column[start : start + 30] for column in offered))
        before, cut = top.result()
        expected = naive(tuple(x[: start + 30] for x in offered), 5, 3)
        assert (listed(before), cut.tolist()) == expected


def test_a_result_stays_as_it_is_while_more_is_offered(tiny_stages):
    rng = np.random.default_rng(0)
    top = streamed(rng, offers(rng, 50, 2), 5, 2)
    first, cut = top.result()
    before, cut_before = listed(first), cut.tolist()
    top.add(*offers(rng, 50, 2))
    top.result()
    assert (listed(first), cut.tolist()) == (before, cut_before)


def test_holds_little_more_than_k_of_a_class():
    top, rng = TopK(100, 1), np.random.default_rng(0)
    for _ in range(4):
        top.add(*offers(rng, 200_000, 1))
    assert max(map(len, top._held)) < 220


def test_a_k_beyond_all_images_keeps_all_and_reserves_little(monkeypatch):
    monkeypatch.setattr(ssld.curate.select.topk, "_STAGE", 100)
    monkeypatch.setattr(ssld.curate.select.topk, "_FIRST", 10)
    rng = np.random.default_rng(0)
    offered = offers(rng, 2000, 2)
    top = streamed(rng, offered, 10**12, 2)
    assert listed(top.result()[0]) == naive(offered, 2000, 2)[0]
    assert sum(map(len, top._held)) < 4000


@pytest.mark.parametrize("seed", range(50))
def test_total_order(seed):
    rng = np.random.default_rng(seed)
    row, _, score, tie = offers(rng, 60, 1)
    row //= 20  # equal rows too, which stay as they are
    expected = sorted(range(60), key=lambda i: (-score[i], tie[i], row[i]))
    assert total_order(score, tie, row).tolist() == expected


def test_refusals():
    top = TopK(2, 3)
    good = offers(np.random.default_rng(0), 2, 3)
    row, cls, score, tie = np.array([40, 41]), *good[1:]
    with pytest.raises(ValueError, match="row 41 has the score NaN"):
        top.add(row, cls, np.array([0.5, np.nan], np.float32), tie)
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match=f"row 41 has the class {wrong}: .* from 0 to 2"):
            top.add(row, np.array([2, wrong], np.int32), score, tie)
    with pytest.raises(ValueError, match="lengths 1, 2, 2 and 2"):
        top.add(row[:1], cls, score, tie)
    for k, classes in ((0, 3), (2, 0)):
        with pytest.raises(ValueError, match="at least 1 of each"):
            TopK(k, classes)
    assert len(top.result()[0]) == 0  # what was refused left nothing behind
