"""Differences of two backbones: against scipy, closed forms, naive loops, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from downstream.ab import statistics as ab
from downstream.ab.statistics import Interval, Point


def of_hits(hits: np.ndarray) -> ab.Statistic:
    return lambda draws: hits[draws].mean(1)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_over_seeds_it_is_the_paired_t_test(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.7, 0.02, n), rng.normal(0.72, 0.02, n)
    found = ab.compare(a.tolist(), b.tolist())
    expected = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert found.over_seeds is not None and found.deciding == found.over_seeds
    assert [found.over_seeds.low, found.over_seeds.high] == pytest.approx(list(expected), abs=1e-12)
    assert found.mean == pytest.approx((b - a).mean(), abs=1e-15)
    assert found.over_images is None and found.over_both is None


def test_two_seeds_by_hand():
    found = ab.compare([0.5, 0.6], [0.6, 0.9])  # differences .1 and .3, t(1) = 12.706
    assert found.over_seeds is not None
    assert found.over_seeds.high == pytest.approx(0.2 + 12.7062047 * 0.1, abs=1e-7)
    assert found.verdict == "no difference shown"


def test_one_seed_has_no_interval_over_seeds_and_shows_nothing():
    hits = np.arange(100) % 2 == 0
    pair = (of_hits(np.zeros(100)), of_hits(hits))
    found = ab.compare([0.0], [0.5], [pair], images=100)
    assert found.over_seeds is None and found.over_both is None and found.over_images is not None
    assert found.over_images.low > 0.3 and found.verdict == "no difference shown"


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.1, 0.3, "B better"),
        (-0.3, -0.1, "A better"),
        (-0.1, 0.3, "no difference shown"),
        (0.0, 0.3, "no difference shown"),
    ],
)
def test_verdicts(low, high, said):
    found = ab.Difference((0.0,), Interval(low, high), None, None)
    assert found.verdict == said
    wide = Interval(-1.0, 1.0)  # both sources of error decide where they are known
    assert ab.Difference((0.0,), Interval(low, high), wide, wide).verdict == "no difference shown"


def test_the_bootstrap_is_a_loop_over_resamples():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 3, 50)) < 0.6  # [seeds, images]
    records = [(of_hits(x), of_hits(y)) for x, y in zip(a, b, strict=True)]
    found = ab.bootstrap(records, 50, seed=7, resamples=300)
    generator, means = np.random.default_rng(7), []
    for draw in generator.integers(50, size=(300, 50)):
        gaps = [y[draw].mean() - x[draw].mean() for x, y in zip(a, b, strict=True)]
        means.append(sum(gaps) / 3)
    expected = np.percentile(means, [2.5, 97.5])
    assert [found.low, found.high] == pytest.approx(expected.tolist(), abs=1e-12)
    assert found == ab.bootstrap(records, 50, seed=7, resamples=300)
    assert found != ab.bootstrap(records, 50, seed=8, resamples=300)


def test_the_bootstrap_does_not_depend_on_how_much_is_drawn_at_a_time(monkeypatch):
    hits = np.random.default_rng(1).random(40) < 0.5
    records = [(of_hits(hits), of_hits(~hits))]
    whole = ab.bootstrap(records, 40, seed=0, resamples=100)
    monkeypatch.setattr(ab, "INDICES_AT_A_TIME", 40 * 7)
    assert ab.bootstrap(records, 40, seed=0, resamples=100) == whole


def test_the_bootstrap_of_a_difference_of_shares_is_nearly_normal():
    rng = np.random.default_rng(2)
    a, b = rng.random(2000) < 0.6, rng.random(2000) < 0.65
    found = ab.bootstrap([(of_hits(a), of_hits(b))], 2000, seed=0)
    gaps = b.astype(float) - a
    half = 1.96 * gaps.std() / np.sqrt(2000)
    assert [found.low, found.high] == pytest.approx(
        [gaps.mean() - half, gaps.mean() + half], abs=0.003
    )


def test_draws_that_say_nothing_are_left_out():
    def undefined(draws: np.ndarray) -> np.ndarray:
        return np.where(draws[:, 0] == 0, np.nan, 1.0)

    found = ab.bootstrap([(of_hits(np.zeros(5)), undefined)], 5, seed=0)
    assert found == Interval(1.0, 1.0)


def test_two_sources_of_error_add_as_roots_of_squares():
    found = ab.added(1.0, Interval(0.7, 1.3), Interval(0.6, 1.8))
    assert (found.low, found.high) == pytest.approx((0.5, 1.0 + np.hypot(0.3, 0.8)))
    beside = ab.added(1.0, Interval(0.7, 1.3), Interval(1.1, 1.2))  # a bootstrap may be aside
    assert (beside.low, beside.high) == pytest.approx((0.7, 1.0 + np.hypot(0.3, 0.2)))


def test_the_interval_over_seeds_covers_as_often_as_it_says():
    rng = np.random.default_rng(3)
    for n in (2, 3, 5):
        covered = 0
        for values in rng.normal(0.02, 0.01, (1500, n)):
            found = ab.t_interval(values)
            assert found is not None
            covered += found.low <= 0.02 <= found.high
        assert 0.935 < covered / 1500 < 0.965


def test_the_interval_over_both_covers_the_truth_over_seeds_and_images():
    """Networks that are equally good on the whole: each finds other images hard, and each seed
    has its luck. 150 images and 3 seeds are what is seen of that."""
    rng, images, seeds, trials = np.random.default_rng(4), 150, 3, 300
    covered = dict.fromkeys(("over seeds", "over images", "over both"), 0)
    for _ in range(trials):
        hard = rng.beta(2, 1, (2, 1, images))
        luck = rng.normal(0, 0.03, (2, seeds, 1))
        a, b = rng.random((2, seeds, images)) < np.clip(hard + luck, 0, 1)
        records = [(of_hits(x), of_hits(y)) for x, y in zip(a, b, strict=True)]
        over_seeds = ab.t_interval(gaps := (b.mean(1) - a.mean(1)).tolist())
        over_images = ab.bootstrap(records, images, seed=1, resamples=200)
        assert over_seeds is not None
        both = ab.added(float(np.mean(gaps)), over_seeds, over_images)
        for name, x in zip(covered, (over_seeds, over_images, both), strict=True):
            covered[name] += x.low <= 0 <= x.high
    shares = {name: count / trials for name, count in covered.items()}
    assert shares["over both"] > 0.95 and shares["over images"] < 0.92, shares


CURVE = [Point(10, 1.0, 0.2), Point(20, 3.0, 0.4), Point(30, 4.0, 0.3), Point(40, 6.0, 0.6)]


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (0.1, Point(10, 1.0, 0.2)),
        (0.2, Point(10, 1.0, 0.2)),
        (0.3, Point(15, 2.0, 0.3)),
        (0.4, Point(20, 3.0, 0.4)),
        (0.5, Point(30 + 10 * 2 / 3, 4 + 2 * 2 / 3, 0.5)),
        (0.6, Point(40, 6.0, 0.6)),
        (0.7, None),
    ],
)
def test_when_a_score_is_reached(score, expected):
    found = ab.time_to_score(CURVE, score)
    if expected is None or found is None:
        assert found is expected
    else:
        assert vars(found) == pytest.approx(vars(expected))


def test_a_mean_curve_has_the_steps_of_all():
    other = [Point(20, 5.0, 0.6), Point(40, 8.0, 0.8), Point(50, 9.0, 0.9)]
    assert ab.mean_curve([CURVE, other]) == [Point(20, 4.0, 0.5), Point(40, 7.0, 0.7)]
    assert ab.mean_curve([]) == [] and ab.time_to_score([], 0.5) is None
