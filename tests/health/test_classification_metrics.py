"""What an evaluation counts, against numpy, scipy and scikit-learn in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from scipy.special import log_softmax
from scipy.stats import entropy
from sklearn.metrics import confusion_matrix
from torch.nn import functional as F

import ssld.health.classification_metrics
from ssld.data.loading import Batch
from ssld.distill.divergence import divergence
from ssld.health.classification_metrics import EXAMPLES, ClassificationMetrics

LABELED = ("top1", "top5", "ece", "labeled", "top1_chance")
CPU = torch.device("cpu")


class Draw:
    """n images with correlated student, teacher and labels; some unreadable, some unlabeled."""

    def __init__(self, n=240, classes=12, seed=0) -> None:
        rng = np.random.default_rng(seed)
        truth = rng.integers(0, classes, n)
        common = rng.normal(0, 1, (n, classes)) + 2 * np.eye(classes)[truth]
        tilt = np.linspace(0, 1, classes)  # classes are not equally frequent
        student, teacher = (2 * common + rng.normal(0, 1.5, (n, classes)) + tilt for _ in range(2))
        self.classes = classes
        self.labels = np.where(rng.random(n) < 0.3, -1, truth)
        self.weight = (rng.random(n) > 0.2).astype(np.float32)
        self.logits = torch.tensor(student, dtype=torch.float32)
        self.targets = F.log_softmax(torch.tensor(teacher, dtype=torch.float32), -1)
        self.distance = divergence("kl", self.logits, self.targets)
        self.images = torch.tensor(rng.integers(0, 256, (n, 2, 2, 3)), dtype=torch.uint8)
        self.log_s = log_softmax(self.logits.double().numpy(), -1)
        self.log_t = log_softmax(self.targets.double().numpy(), -1)

    def batch(self, part: slice) -> Batch:
        weight, labels = (torch.tensor(x[part]) for x in (self.weight, self.labels))
        ids = [f"image {i:04d}" for i in range(len(self.labels))][part]
        return Batch(self.images[part], weight, labels, ids, [])

    def measured(self, sizes=(240,), *, teacher=True, start=0) -> ClassificationMetrics:
        measured = ClassificationMetrics(self.classes, CPU)
        for size in sizes:
            part = slice(start, start + size)
            more = (self.targets[part], self.distance[part]) if teacher else ()
            measured.add(self.batch(part), self.logits[part], *more)
            start += size
        return measured


def among_best(scores: np.ndarray, wanted: np.ndarray, k: int) -> np.ndarray:
    """Whether fewer than k classes score higher than the wanted one."""
    own = np.take_along_axis(scores, wanted[:, None], 1)
    return (scores > own).sum(1) < k


def naive_ece(log_s: np.ndarray, labels: np.ndarray) -> float:
    """Guo et al. 2017, equation 3, 15 bins: sum over bins of |B| / n |accuracy - confidence|."""
    confidence, best, total = np.exp(log_s.max(1)), log_s.argmax(1), 0.0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if inside.any():
            gap = (best[inside] == labels[inside]).mean() - confidence[inside].mean()
            total += inside.sum() / len(labels) * abs(gap)
    return total


def _chance(a: np.ndarray, b: np.ndarray) -> float:
    """Share of all pairs, one of each, that agree."""
    return float((a[:, None] == b[None, :]).mean())


def expected(draw: Draw) -> dict[str, float]:
    seen = draw.weight > 0
    log_s, log_t = draw.log_s[seen], draw.log_t[seen]
    labels = draw.labels[seen]
    known = labels >= 0
    table = confusion_matrix(log_t.argmax(1), log_s.argmax(1), labels=range(draw.classes))
    found = {f"top{k}": among_best(log_s[known], labels[known], k).mean() for k in (1, 5)} | {
        f"agreement{k}": among_best(log_s, log_t.argmax(1), k).mean() for k in (1, 5)
    }
    return found | {
        "divergence": entropy(np.exp(log_t), np.exp(log_s), axis=1).mean(),
        "entropy_student": entropy(np.exp(log_s), axis=1).mean(),
        "entropy_teacher": entropy(np.exp(log_t), axis=1).mean(),
        # Cohen's kappa is (observed - this) / (1 - this).
        "agreement_chance": (table.sum(0) * table.sum(1)).sum() / table.sum() ** 2,
        "classes_student": len(set(log_s.argmax(1))) / draw.classes,
        "classes_teacher": len(set(log_t.argmax(1))) / draw.classes,
        "images": seen.sum(),
        "labeled": known.sum(),
        "top1_chance": _chance(log_s.argmax(1)[known], labels[known]),
        "ece": naive_ece(log_s[known], labels[known]),
    }


@pytest.mark.parametrize("classes", [2, 4, 12, 300])
@pytest.mark.parametrize("sizes", [(240,), (64, 64, 64, 48), (1, 2, 237)])
def test_every_metric_equals_the_naive_one(classes, sizes):
    draw = Draw(classes=classes)
    found, wanted = draw.measured(sizes).metrics(), expected(draw)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name
    if classes >= 12:
        assert 0.02 < wanted["top1"] < wanted["top5"] < 1
        assert 0.02 < wanted["agreement1"] < wanted["agreement5"] < 1


def test_with_few_classes_the_best_five_are_all():
    found = Draw(classes=4).measured().metrics()
    assert found["top5"] == found["agreement5"] == 1 > found["top1"]


def test_counted_is_hits_and_images():
    draw = Draw()
    seen, known = draw.weight > 0, draw.labels >= 0
    hits = draw.log_s.argmax(1) == draw.labels
    measured = draw.measured((100, 140))
    assert measured.counted("top1") == (hits[seen & known].sum(), (seen & known).sum())
    agreed = draw.log_s.argmax(1) == draw.log_t.argmax(1)
    assert measured.counted("agreement1") == (agreed[seen].sum(), seen.sum())


def test_by_class_counts_the_teachers_classes():
    draw = Draw()
    seen = draw.weight > 0
    student, teacher = draw.log_s.argmax(1)[seen], draw.log_t.argmax(1)[seen]
    wanted = [[(teacher == c).sum(), ((teacher == c) & (student == c)).sum()] for c in range(12)]
    assert draw.measured((50, 190)).by_class.tolist() == wanted


def test_what_is_unreadable_counts_nowhere():
    draw = Draw()
    before = draw.measured()
    lost = torch.tensor(draw.weight) == 0
    draw.logits[lost] = -draw.logits[lost]
    draw.targets[lost] = draw.targets[lost].roll(1, -1)
    draw.distance[lost] = 1e6
    draw.labels[lost.numpy()] = 3
    after = draw.measured()
    assert after.metrics() == before.metrics()
    assert torch.equal(after.by_class, before.by_class)
    assert torch.equal(after.bins, before.bins)
    assert [e.sample_id for e in after.examples] == [e.sample_id for e in before.examples]


def test_labels_change_only_what_speaks_of_labels():
    draw = Draw()
    labeled = draw.measured().metrics()
    draw.labels[:] = -1
    without = draw.measured()
    assert without.counted("top1") == (0, 0) and without.bins.sum() == 0
    rest = {k: v for k, v in labeled.items() if k not in LABELED}
    assert without.metrics() == rest


def test_without_a_teacher_nothing_speaks_of_one():
    draw = Draw()
    wanted = expected(draw)
    found = draw.measured((100, 140), teacher=False)
    names = {*LABELED, "entropy_student", "classes_student", "images"}
    assert found.metrics().keys() == names
    assert all(found.metrics()[n] == pytest.approx(wanted[n], rel=1e-5) for n in names)
    assert found.examples == []


def test_nothing_counted_is_no_metric():
    assert ClassificationMetrics(3, CPU).metrics() == {}
    draw = Draw(n=6)
    draw.weight[:] = 0
    measured = draw.measured((6,))
    assert measured.metrics() == {} and measured.examples == []


def test_an_impossible_class_has_no_entropy():
    draw = Draw(n=2, classes=3)
    draw.weight[:] = 1
    draw.targets = torch.tensor([[0.0, -math.inf, -math.inf], [math.log(0.5)] * 2 + [-math.inf]])
    found = draw.measured((2,)).metrics()
    assert found["entropy_teacher"] == pytest.approx(math.log(2) / 2)


@pytest.mark.parametrize("sizes", [(240,), (7, 13, 100, 120), (5,) * 48])
def test_examples_are_those_that_differ_most(sizes):
    draw = Draw()
    found = draw.measured(sizes).examples
    score = np.where(draw.weight > 0, draw.distance.numpy(), -1)
    worst = np.argsort(-score)[:EXAMPLES]
    assert EXAMPLES == 12 and [e.sample_id for e in found] == [f"image {i:04d}" for i in worst]
    for example, i in zip(found, worst, strict=True):
        assert example.distance == pytest.approx(score[i], rel=1e-6)
        assert example.label == draw.labels[i]
        assert np.array_equal(example.pixels, draw.images[i].numpy())
        for said, log_p in ((example.student, draw.log_s[i]), (example.teacher, draw.log_t[i])):
            best = np.argsort(-log_p)[:3]
            assert [c for c, _ in said] == best.tolist()
            assert [p for _, p in said] == pytest.approx(np.exp(log_p[best]), rel=1e-5)


def test_few_images_are_all_examples():
    draw = Draw(n=5, classes=2)
    draw.weight[:] = [1, 0, 1, 1, 1]
    found = draw.measured((2, 3)).examples
    assert sorted(e.sample_id for e in found) == [f"image {i:04d}" for i in (0, 2, 3, 4)]
    assert all(len(e.student) == len(e.teacher) == 2 for e in found)


@pytest.mark.parametrize("short", [False, True])
def test_one_process_reduces_to_itself(short):
    measured, alone = Draw().measured(), Draw().measured()
    assert measured.reduce(Accelerator(cpu=True), short) == (not short)
    assert measured.metrics() == alone.metrics()
    assert torch.equal(measured.by_class, alone.by_class) and torch.equal(measured.bins, alone.bins)
    assert [e.sample_id for e in measured.examples] == [e.sample_id for e in alone.examples]


class Pair:
    """As an Accelerator of two processes, of which the other has sent `theirs`."""

    num_processes = 2

    def __init__(self, theirs: torch.Tensor | None = None) -> None:
        self.theirs = theirs

    def reduce(self, tensor: torch.Tensor, how: str) -> torch.Tensor:
        assert how == "sum"
        self.sent = tensor.clone()
        return tensor if self.theirs is None else tensor + self.theirs


@pytest.mark.parametrize("short", [False, True])
def test_two_processes_reduce_to_the_whole(monkeypatch, short):
    draw = Draw()
    whole = draw.measured()
    other, mine = draw.measured((150,), start=90), draw.measured((90,))
    gathered = [*other.examples, *mine.examples]
    monkeypatch.setattr(ssld.health.classification_metrics, "gather_object", lambda _: gathered)
    first = Pair()
    other.reduce(first, short)  # only this process was cut short, or none was
    assert mine.reduce(Pair(first.sent), False) == (not short)
    assert mine.metrics() == pytest.approx(whole.metrics(), rel=1e-12)
    assert torch.equal(mine.by_class, whole.by_class)
    torch.testing.assert_close(mine.bins, whole.bins)
    assert [e.sample_id for e in mine.examples] == [e.sample_id for e in whole.examples]
