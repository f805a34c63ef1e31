"""Holding images out: for any sizes nothing is lost, doubled, reordered or unfairly drawn."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from ssld.data.source import Subset, hold_out, share_of


class Numbers:
    """A source without images: everything about the i-th says i."""

    def __init__(self, length: int, name: str = "numbers") -> None:
        self.length = length
        self.path = name
        self.class_names = [f"{name} odd", f"{name} even"]

    def __len__(self) -> int:
        return self.length

    def _known(self, i: int) -> int:
        if not 0 <= i < self.length:
            raise IndexError(i)
        return i

    def sample_id(self, i: int) -> str:
        return f"{self._known(i)}"

    def location(self, i: int) -> str:
        return f"{self.path}/{self._known(i)}"

    def label(self, i: int) -> int | None:
        return None if self._known(i) % 3 else i

    def size(self, i: int) -> int:
        return 10 * self._known(i)

    def read(self, i: int) -> bytes:
        return f"{self.path} bytes {self._known(i)}".encode()


def numbers(source) -> list[int]:
    return [int(source.sample_id(i)) for i in range(len(source))]


def drawn(length: int, wanted: int) -> tuple[list[int], list[int]]:
    """Numbers that are kept and held out of one source."""
    kept, held = hold_out([Numbers(length)], wanted)
    assert len(kept) == 1 and len(held) <= 1
    return numbers(kept[0]), numbers(held[0]) if held else []


@pytest.mark.parametrize("wanted", [1, 2, 7, 1000])
def test_kept_and_held_cover_everything_once_in_order(wanted):
    for length in [*range(1, 130), 999, 1000, 1001, 4321]:
        kept, held = drawn(length, wanted)
        assert kept == sorted(kept) and held == sorted(held)
        assert sorted(kept + held) == list(range(length))
        assert len(held) == min(wanted, length // 20)


@pytest.mark.parametrize("chosen", [[], [0], [4], [0, 1, 2, 3, 4], [0, 4], [1, 2], [2, 3, 4]])
def test_any_choice_and_the_rest_are_complementary(chosen):
    table = np.array(chosen, np.int64)
    part, rest = (Subset(Numbers(5), table, keep=keep) for keep in (True, False))
    assert numbers(part) == chosen
    assert numbers(rest) == [i for i in range(5) if i not in chosen]


@pytest.mark.parametrize("length", [20, 41, 400, 1999, 20_000])
@pytest.mark.parametrize("wanted", [1, 3, 50, 10**6])
def test_what_is_held_out_is_evenly_spread(length, wanted):
    held = drawn(length, wanted)[1]
    gaps = np.diff(held)
    assert len(held) == min(wanted, length // 20)
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1
    half = length / (2 * len(held))
    assert abs(held[0] - half) <= 1 and abs(length - held[-1] - half) <= 1


def test_each_source_gives_by_its_size():
    sizes = [100, 2_000, 3_000, 50_000, 45_900]
    kept, held = hold_out([Numbers(n, f"s{n}") for n in sizes], 1000)
    total = sum(sizes)
    for n, rest, part in zip(sizes, kept, held, strict=True):
        assert rest.path == part.path == f"s{n}"
        assert len(part) == pytest.approx(1000 * n / total, abs=1)
        assert len(part) + len(rest) == n
    assert sum(map(len, held)) == pytest.approx(1000, abs=len(sizes) / 2)


def test_at_most_a_twentieth_of_every_source():
    sizes = [19, 20, 39, 40, 1000]
    kept, held = hold_out([Numbers(n, f"s{n}") for n in sizes], 10**6)
    assert {p.path: len(p) for p in held} == {"s20": 1, "s39": 1, "s40": 2, "s1000": 50}
    assert [len(p) for p in kept] == [19, 19, 38, 38, 950]


def test_sources_that_are_too_small_stay_whole():
    small, large = Numbers(19), Numbers(4000)
    kept, held = hold_out([small, large], 100)
    assert kept[0] is small and [p.source for p in held] == [large]
    assert hold_out([small], 100) == ([small], [])
    assert hold_out([large], 0) == ([large], [])
    assert hold_out([], 100) == ([], [])


@pytest.mark.parametrize("keep", [True, False])
def test_everything_about_an_image_passes_through(keep):
    source = Numbers(100, "somewhere")
    part = Subset(source, np.arange(3, 100, 10), keep=keep)
    assert part.path == "somewhere" and part.class_names == source.class_names
    true = [i for i in range(100) if (i % 10 == 3) == keep]
    assert len(part) == len(true)
    for i, j in enumerate(true):
        for what in ("sample_id", "location", "label", "size", "read"):
            assert getattr(part, what)(i) == getattr(source, what)(j), what


@pytest.mark.parametrize("keep", [True, False])
def test_a_part_of_a_part(keep):
    half = Subset(Numbers(40), np.arange(0, 40, 2), keep=keep)
    quarter = Subset(half, np.arange(0, 20, 2), keep=True)
    assert numbers(quarter) == list(range(0 if keep else 1, 40, 4))


def test_a_part_pickles_and_millions_are_not_listed():
    kept, held = hold_out([Numbers(14_000_000)], 1000)
    for part in (kept[0], held[0]):
        data = pickle.dumps(part)
        assert len(data) < 20_000
        again = pickle.loads(data)
        assert len(again) == len(part)
        for i in (0, 499, 999):
            assert again.location(i) == part.location(i)
    assert held[0].sample_id(0) == "7000" and held[0].sample_id(999) == "13993000"
    assert [kept[0].sample_id(i) for i in (6999, 7000)] == ["6999", "7001"]
    assert kept[0].sample_id(14_000_000 - 1001) == "13999999"


def test_many_small_sources_have_their_share():
    kept, held = hold_out([Numbers(100, f"s{i}") for i in range(1000)], 100)
    assert sum(map(len, held)) == 100 and sum(map(len, kept)) == 99_900


def test_a_share_is_part_of_every_larger_one():
    before: set[int] = set()
    for share in (0.001, 0.1, 0.25, 0.5, 0.99, 1.0):
        found = numbers(share_of([Numbers(1000)], share)[0])
        assert found == sorted(set(found)) and len(found) == max(1, 1000 * share)
        assert before < set(found)
        before = set(found)


def test_a_share_is_taken_of_each_source_and_at_random():
    large, small = share_of([Numbers(1000), Numbers(3)], 0.1)
    assert (len(large), len(small)) == (100, 1)
    gaps = np.diff(numbers(large))
    assert gaps.max() > 20 and gaps.min() == 1  # not every tenth, not the first hundred
    sources = [Numbers(5)]
    assert share_of(sources, 1.0) is sources
