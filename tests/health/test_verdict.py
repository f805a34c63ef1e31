"""The sentence about a run, from evaluations whose right judgement is known beforehand."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from ssld.health.verdict import judge, symptoms

CLASSES = 100
SHARES = ["agreement1", "agreement5", "top1"]


def evaluation(epoch=1.0, **changes) -> dict:
    """Of a run that has learned something; without labels."""
    return {
        "epoch": epoch,
        "images": 50_000,
        "agreement1": 0.6,
        "agreement5": 0.8,
        "agreement_chance": 0.01,
        "divergence": 0.5,
        "entropy_student": 1.5,
        "entropy_teacher": 1.0,
        "classes_student": 1.0,
        "classes_teacher": 1.0,
    } | changes


def curve(metric, values, epochs=None, **others) -> list[dict]:
    """One evaluation per value; `others` are sequences of the same length."""
    epochs = range(1, len(values) + 1) if epochs is None else epochs
    rows = zip(epochs, values, *others.values(), strict=True)
    return [evaluation(e, **dict(zip([metric, *others], v, strict=True))) for e, *v in rows]


def verdict(evaluations, metric="agreement1", share_of_peak=0.1, **changes):
    settings = {"num_classes": CLASSES, "share_of_peak": share_of_peak, **changes}
    return judge(evaluations, metric=metric, **settings)


def rate(found, metric="agreement1") -> float:
    """What the sentence says is gained per epoch, as a fraction."""
    assert found.kind == "improving"
    points = r"([+-]\S+) points per epoch" if metric != "divergence" else r"([+-]\S+) per epoch"
    match = re.search(points, found.sentence)
    assert match, found.sentence
    return float(match[1]) / (1 if metric == "divergence" else 100)


def since(found) -> float:
    assert found.kind == "flat"
    match = re.search(r"since epoch (\S+):", found.sentence)
    assert match, found.sentence
    return float(match[1])


def symptom(**changes) -> str:
    return "; ".join(symptoms(evaluation(**changes), CLASSES))


@pytest.mark.parametrize("metric", SHARES)
@pytest.mark.parametrize("slope", [0.03, 0.002])
@pytest.mark.parametrize("count", [2, 3, 4, 9])
def test_a_straight_line_improves_by_its_slope(metric, slope, count):
    values = [0.2 + slope * i for i in range(count)]
    found = verdict(curve(metric, values), metric)
    assert rate(found, metric) == pytest.approx(slope, rel=1e-6)
    assert f"{values[-1]:.1%}" in found.sentence


def test_the_rate_is_per_epoch_not_per_evaluation():
    epochs = [0.25, 0.5, 0.75, 1.0]
    values = [0.2 + 0.04 * e for e in epochs]
    assert rate(verdict(curve("agreement1", values, epochs))) == pytest.approx(0.04)


def test_the_rate_is_of_lately():
    values = [0.1, 0.2, 0.3, 0.4, 0.45, 0.46, 0.47, 0.48]  # fast until the fourth, slow from then
    assert rate(verdict(curve("agreement1", values))) == pytest.approx(0.01)


def test_the_rate_is_least_squares():
    rng = np.random.default_rng(0)
    epochs = np.cumsum(rng.uniform(0.5, 1.5, 12))
    values = 0.2 + 0.02 * epochs + rng.normal(0, 0.01, 12)
    expected = np.polyfit(epochs[6:], values[6:], 1)[0]
    found = verdict(curve("agreement1", values.tolist(), epochs.tolist()))
    assert rate(found) == pytest.approx(expected, rel=0.03)  # two digits are shown


@pytest.mark.parametrize("rising", [3, 7])
def test_flat_names_the_epoch_since_when(rising):
    values = [0.1 * min(i, rising) for i in range(1, rising + 6)]
    assert since(verdict(curve("agreement1", values))) == rising


def test_wobble_below_the_noise_is_flat():
    values = [0.1, 0.3, 0.5] + [0.5 + 0.0004 * (-1) ** i for i in range(8)]
    assert since(verdict(curve("agreement1", values))) == 3
    few = curve("agreement1", [0.1, 0.3, 0.5] + [0.5 + 0.01 * (-1) ** i for i in range(8)])
    assert since(verdict([e | {"images": 200} for e in few])) == 3  # few images: more noise
    many = [e | {"images": 10**7} for e in curve("agreement1", values)]
    assert since(verdict(many)) == 3  # a tenth of a point is never worth a word


def test_a_slow_rise_above_the_noise_is_not_flat():
    values = [0.1, 0.3, 0.5] + [0.5 + 0.004 * i for i in range(1, 9)]
    assert rate(verdict(curve("agreement1", values))) == pytest.approx(0.004)


def test_flat_needs_a_fifth_of_the_run():
    values = [0.005 * min(i, 80) for i in range(1, 110)]
    assert verdict(curve("agreement1", values[:95])).kind == "improving"
    found = verdict(curve("agreement1", values[:101]))
    assert since(found) == 80 and "consider stopping" in found.sentence


def test_flat_needs_several_evaluations():
    found = verdict(curve("agreement1", [0.1, 0.3, 0.3, 0.3]))
    assert "consider stopping" not in found.sentence
    found = verdict(curve("agreement1", [0.1, 0.3, 0.3, 0.3, 0.3]))
    assert since(found) == 2 and "consider stopping" in found.sentence


@pytest.mark.parametrize(("share", "stop"), [(0.02, True), (0.5, True), (0.51, False), (1, False)])
def test_stopping_is_advised_only_at_a_low_learning_rate(share, stop):
    found = verdict(curve("agreement1", [0.1] + [0.4] * 9), share_of_peak=share)
    assert since(found) == 2
    assert ("consider stopping" in found.sentence) == stop
    assert (f"{share:.0%} of its peak" in found.sentence) != stop


def test_a_fall_is_flat_since_the_best_and_names_it():
    found = verdict(curve("agreement1", [0.3, 0.62, 0.55, 0.5, 0.45, 0.4]))
    assert since(found) == 2
    assert "40.0%" in found.sentence and "best 62.0%" in found.sentence


@pytest.mark.parametrize("count", [3, 12])
def test_a_falling_divergence_while_agreement_stands_is_progress(count):
    falling = [0.5 * 0.95**i for i in range(count)]
    found = verdict(curve("agreement1", [0.5] * count, divergence=falling))
    assert found.kind == "improving" and f"{falling[-1]:.4g}" in found.sentence
    rising = verdict(curve("agreement1", [0.5] * count, divergence=falling[::-1]))
    assert rising.kind == "flat"


def test_a_divergence_that_fell_only_before_is_no_progress():
    fell = [2.0, 1.0, 0.5] + [0.5] * 9
    found = verdict(curve("agreement1", [0.2, 0.4, 0.5] + [0.5] * 9, divergence=fell))
    assert since(found) == 3


@pytest.mark.parametrize("count", [2, 3, 4, 10])
def test_equal_values_are_flat(count):
    assert since(verdict(curve("agreement1", [0.4] * count))) == 1


def test_equal_values_are_flat_at_any_epochs():
    rng = np.random.default_rng(0)
    kinds = set()
    for value, step in zip(rng.uniform(0.3, 0.8, 2000), rng.integers(3, 999, 2000), strict=True):
        epochs = [round(100 * i / step, 4) for i in (1, 2, 3)]
        kinds.add(verdict(curve("agreement1", [value] * 3, epochs)).kind)
    assert kinds == {"flat"}


def test_late_epochs_are_shown_in_full():
    epochs = [200 * i for i in range(1, 12)]
    found = verdict(curve("agreement1", [0.2, 0.3, 0.4, 0.5, 0.55, 0.6] + [0.6] * 5, epochs))
    assert "since epoch 1200:" in found.sentence


def test_divergence_as_metric_is_better_when_lower():
    falling = [2.0 - 0.1 * i for i in range(8)]
    found = verdict(curve("divergence", falling), "divergence")
    assert rate(found, "divergence") == pytest.approx(-0.1)
    assert verdict(curve("divergence", falling[::-1]), "divergence").kind == "flat"
    found = verdict(curve("divergence", [2.0, 1.0, 0.5] + [0.6] * 6), "divergence")
    assert since(found) == 3 and "best 0.5" in found.sentence and "%" not in found.sentence
    wobble = [2.0, 1.0, 0.6] + [0.5 + 0.002 * (-1) ** i for i in range(8)]
    assert since(verdict(curve("divergence", wobble), "divergence")) == 4


def test_a_divergence_that_stands_is_not_said_to_have_risen():
    found = verdict(curve("divergence", [1.0, 1.0, 1.0]), "divergence")
    assert found.kind == "flat" and "rising" not in found.sentence


@pytest.mark.parametrize("count", [0, 1])
def test_one_evaluation_is_too_early(count):
    assert verdict(curve("agreement1", [0.4] * count)).kind == "too early"


def test_a_run_that_warms_up_is_not_accused():
    bad = [evaluation(e, agreement1=0.01) for e in (1, 2, 3)]
    assert verdict(bad).kind == "not learning"
    found = verdict(bad, early=True)
    assert found.kind == "too early" and "chance" in found.sentence
    good = curve("agreement1", [0.2, 0.3, 0.4])
    assert verdict(good, early=True).kind == "improving"


def test_the_last_evaluation_decides_whether_it_learns():
    found = verdict([*curve("agreement1", [0.2, 0.4]), evaluation(3, agreement1=0.011)])
    assert found.kind == "not learning" and "1.1%" in found.sentence
    assert verdict([evaluation(1, agreement1=0.01), evaluation(2)]).kind == "improving"


def test_a_healthy_evaluation_has_no_symptom():
    assert symptom() == "" and symptom(top1=0.5) == ""
    assert symptom(agreement1=0.05, agreement_chance=0.02) == ""  # early, but clearly above


@pytest.mark.parametrize("images", [100, 50_000])
def test_agreement_at_chance_is_named(images):
    for chance in (0.01, 0.3):
        margin = max(2.576 * math.sqrt(chance * (1 - chance) / images), 0.01 * (1 - chance))
        said = symptom(agreement1=chance + 0.9 * margin, agreement_chance=chance, images=images)
        assert "agreement@1" in said and "which is chance" in said
        above = chance + 1.1 * margin
        assert symptom(agreement1=above, agreement_chance=chance, images=images) == ""


@pytest.mark.parametrize(("share", "said"), [(0.01, 1), (0.1, 10), (0.11, 0), (0.9, 0)])
def test_a_collapse_is_named_with_its_classes(share, said):
    expected = f"collapsed to {said} of {CLASSES} classes" if said else ""
    assert expected in symptom(classes_student=share)
    assert bool(symptom(classes_student=share)) == bool(said)


def test_as_few_classes_as_the_teacher_is_no_collapse():
    assert symptom(classes_student=0.05, classes_teacher=0.06) == ""
    assert "collapsed to 1 of 6" in symptom(classes_student=0.01, classes_teacher=0.06)


def test_fewer_images_than_classes_is_no_collapse():
    supervised = {"top1": 1.0, "entropy_student": 0.2, "classes_student": 0.1, "images": 100}
    assert symptoms(supervised, 1000) == []


def test_uniform_predictions_are_named():
    said = symptom(entropy_student=math.log(CLASSES))
    assert "uniform" in said and f"{math.log(CLASSES):.3f}" in said
    assert symptom(entropy_student=0.95 * math.log(CLASSES)) == ""


def test_a_uniform_teacher_is_named_and_its_student_not_blamed():
    flat = math.log(CLASSES)
    said = symptom(entropy_teacher=flat, entropy_student=flat)
    assert "teacher itself says the same" in said and "uniform" not in said


def test_a_student_that_follows_its_teacher_to_chance_is_named():
    said = symptom(top1=0.011)
    assert "follows its teacher" in said and "top-1" in said and "1.1%" in said
    assert "follows" not in symptom(top1=0.011, agreement1=0.01)  # it does not even follow


def test_without_a_teacher_top1_at_chance_is_named():
    plain = {"images": 50_000, "entropy_student": 1.0, "classes_student": 1.0}
    assert "top-1 is 1.0%, which is chance" in symptoms(plain | {"top1": 0.01}, CLASSES)[0]
    assert symptoms(plain | {"top1": 0.03}, CLASSES) == []
    uniform = plain | {"top1": 0.01, "entropy_student": math.log(CLASSES)}
    assert "uniform" in "; ".join(symptoms(uniform, CLASSES))
    found = judge(
        [plain | {"epoch": e, "top1": 0.1 * e} for e in (1, 2)],
        metric="top1",
        num_classes=CLASSES,
        share_of_peak=1.0,
    )
    assert found.kind == "improving"


RISING = [{"epoch": float(i), "agreement1": 0.1 * i, "images": 1000} for i in range(1, 6)]
LEVEL = [{"epoch": float(i), "agreement1": 0.7, "images": 1000} for i in range(1, 21)]
HEALTHY = {"agreement_chance": 0.1, "entropy_teacher": 0.5, "entropy_student": 0.6}
HEALTHY |= {"classes_student": 1.0, "classes_teacher": 1.0}


@pytest.mark.parametrize(
    ("evaluations", "said"),
    [
        (
            RISING,
            "finished, still improving: agreement@1 50.0%, +10 points per epoch lately; a lon",
        ),
        (LEVEL, "finished, flat since epoch 1: agreement@1 70.0%"),
        (RISING[-1:], "finished with agreement@1 50.0%; one evaluation shows no trend"),
    ],
)
def test_a_finished_run_says_what_came_of_it(evaluations, said):
    found = judge(
        [HEALTHY | e for e in evaluations],
        metric="agreement1",
        num_classes=10,
        share_of_peak=0.0,
        finished=True,
    )
    assert found.sentence.startswith(said) and "consider stopping" not in found.sentence


def test_predictions_that_are_no_numbers_are_named_without_a_percentage():
    nan = float("nan")
    bad = evaluation(agreement1=0.0, entropy_student=nan, divergence=nan)
    assert symptoms(bad, CLASSES) == ["its predictions are not finite (NaN or infinite)"]
    for early in (True, False):
        found = judge(
            [evaluation(1), bad | {"epoch": 2.0}],
            metric="divergence",
            num_classes=CLASSES,
            share_of_peak=0.5,
            early=early,
        )
        assert "not finite" in found.sentence and "nan%" not in found.sentence.lower()
