"""Bars and axis of an ablation's plots: what they are is right, and said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import t
from test_tables import made

from ssld.ablate import plot
from ssld.ablate.summary import Spread
from ssld.common.metrics import wilson


def test_bars_over_seeds_are_the_interval_of_the_mean():
    points = (0.5, 0.52, 0.57)
    found = Spread(points).interval()
    half = t.ppf(0.975, 2) * np.std(points, ddof=1) / np.sqrt(3)
    assert found and found.kind == "seeds"
    assert (found.low, found.high) == pytest.approx((0.53 - half, 0.53 + half))
    assert Spread((0.0, 0.5, 1.0)).interval().high == 1.0  # a share


def test_two_seeds_are_no_interval_and_one_has_that_of_its_images():
    two = Spread((0.5, 0.52)).interval()
    assert two and (two.kind, two.low, two.high) == ("two", 0.5, 0.52)
    one = Spread((0.5,), images=100).interval()
    assert one and one.kind == "images" and (one.low, one.high) == wilson(50, 100)
    assert Spread((0.5,)).interval() is None  # AP is no share of images


def drawn(axes: dict[str, Any], top1: Any, folder: Any) -> Any:
    found = made(axes, top1, folder)
    for row in found.rows.values():
        row |= {"held_out_images": 900, "held_out_labels": 400}
    return plot.draw(found, found.ablation.axes[0])


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"lr": [1, 2], "seed": [0, 1, 2]}, "95 % interval of the mean over seeds (Student's t)"),
        ({"lr": [1, 2], "seed": [0, 1]}, "from one of two seeds to the other"),
        ({"lr": [1, 2]}, "95 % interval over held-out images (Wilson); one seed"),
    ],
)
def test_the_plot_says_what_its_bars_are(axes, words, tmp_path):
    figure = drawn(axes, lambda lr, seed=0: 0.3 * lr + 0.01 * seed, tmp_path)
    assert words in figure.get_supxlabel()
    assert figure.axes[0].containers[0].has_yerr
    if "seed" not in axes:  # of the images that have a label
        bars = figure.axes[0].containers[0][2][0].get_segments()
        assert [y for _, y in bars[0]] == pytest.approx([100 * x for x in wilson(120, 400)])


def test_a_mean_over_trials_is_no_share_of_images(tmp_path):
    axes = {"lr": [1, 2], "x": {str(i): {"steps": i} for i in range(1, 10)}}
    figure = drawn(axes, lambda lr, x: 0.3 * lr, tmp_path)
    assert "no bar: one seed" in figure.get_supxlabel()


@pytest.mark.parametrize(
    ("low", "high", "broken"), [(0.70, 0.72, 1), (0.2, 0.6, 0), (0.01, 0.02, 0)]
)
def test_an_axis_begins_at_0_or_shows_that_it_does_not(low, high, broken, tmp_path):
    figure = drawn({"lr": [1, 2], "seed": [0, 1]}, lambda lr, seed: (low, high)[lr - 1], tmp_path)
    plot = figure.axes[0]
    bottom = plot.get_ylim()[0]
    assert (bottom > 0) == bool(broken)
    said = plot.get_title(loc="left")
    assert said == (f"the axis is broken: it begins at {bottom:.1f} %, not at 0" if broken else "")


def test_nothing_is_cut_off(tmp_path):
    figure = drawn({"lr": [1, 2]}, lambda lr: 0.97 + 0.01 * lr, tmp_path)
    low, high = figure.axes[0].get_ylim()
    assert low < 100 * wilson(392, 400)[0] and high > 100 * wilson(396, 400)[1]
