"""Count-matched thresholds, against a loop in float64 that tries every score."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from downstream.pseudo_label.thresholds import threshold, wanted_count


def naive(scores: list[float], wanted: int) -> float | None:
    """The largest threshold that keeps at least `wanted`; the smallest score where none does."""
    if wanted == 0 or not scores:
        return None
    for candidate in sorted(set(scores), reverse=True):
        if sum(score >= candidate for score in scores) >= wanted:
            return candidate
    return min(scores)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("digits", [1, 7])  # with many ties, and with hardly any
def test_it_is_what_trying_all_scores_gives(seed, digits):
    draw = np.random.default_rng(seed)
    scores = draw.random(int(draw.integers(0, 60))).round(digits).astype(np.float32)
    wanted = int(draw.integers(0, 70))
    one = threshold(scores, wanted, "count")
    exact = [float(score) for score in scores]
    assert one.score == naive(exact, wanted)
    kept = 0 if one.score is None else sum(score >= one.score for score in exact)
    assert (one.kept, one.predicted, one.wanted) == (kept, len(scores), wanted)
    assert one.kept >= min(wanted, len(scores))
    assert (one.remark is None) == (one.kept == wanted)


def test_ties_too_few_and_none():
    scores = np.array([0.9, 0.5, 0.5, 0.5, 0.1], np.float32)
    tied = threshold(scores, 2, "count")
    assert (tied.score, tied.kept) == (0.5, 4) and "2 more than wanted" in str(tied.remark)
    few = threshold(scores, 9, "count")
    assert few.kept == 5 and "9 are wanted, and 5 are predicted" in str(few.remark)
    none = threshold(scores, 0, "count")
    assert (none.score, none.kept, none.remark) == (None, 0, None)
    nothing = threshold(scores[:0], 3, "count")
    assert (nothing.score, nothing.kept) == (None, 0) and nothing.remark


def test_a_fixed_score_keeps_what_has_it_as_float32():
    one = threshold(np.array([0.3, 0.29999, 0.7], np.float32), None, 0.3)
    assert (one.score, one.kept, one.remark) == (0.3, 2, None)


@pytest.mark.parametrize("labeled", [0, 1, 7, 860_001])
@pytest.mark.parametrize("units", [1, 10, 117_266])
@pytest.mark.parametrize("generated", [1, 3, 123_403])
def test_counts_are_matched_by_image(labeled, units, generated):
    exact = Fraction(labeled * generated, units)
    wanted = wanted_count(labeled, units, generated)
    if labeled and exact < 1:
        assert wanted == 1  # a class that the labeled set has is wanted
    else:
        assert abs(wanted - exact) <= Fraction(1, 2)
