"""Is the teacher used as it was trained? Its predictions under its given preprocessing against
other normalisations, swapped colour channels and other orders of its classes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from timm.data.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from torch import Tensor

from ssld.common.metrics import near_chance
from ssld.common.packages import is_installed, say_left_out
from ssld.data.loading import Batch
from ssld.models.classifier import Classifier
from ssld.models.teacher import MIN_DIFFERENT_IMAGES, autocast, constant, not_finite, samples

NORMALISATIONS = {
    "ImageNet's": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "Inception's": (IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD),
    "CLIP's": (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    "0 to 1": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "0 to 255": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}
SURE = 0.4
"""Share of what a perfect classifier would tell about an image, beyond which a network whose
answers are all wrong has learned other answers."""
FEWEST_LABELED = 20
"""Labeled images, below which that all are wrong proves nothing."""
OTHER_SCALE = 30
"""Factor between deviations, beyond which two normalisations differ in what a pixel's range is."""
GIVEN, SWAPPED = "as given", "colour channels swapped"


@dataclass(frozen=True)
class Answers:
    """A network's predictions for n images under one preprocessing."""

    best: np.ndarray
    """int64 [n]: the class of each, -1 where its probabilities are not finite."""
    information: float
    """H(mean p) - mean H(p) in nats: high when predictions are sure and not all the same."""


@dataclass(frozen=True)
class TeacherCheck:
    """The outcome, as a table and as findings."""

    images: int
    """How many were looked at."""
    labeled: int
    """How many of them had a label the teacher knows."""
    top1: dict[str, float]
    """By variant, on the labeled images; empty without any."""
    information: dict[str, float]
    findings: list[str]
    """One phrase for each variant that is better than what is given, strongest first."""
    hints: list[str] = field(default_factory=list)
    """The same of variants that only seem to be: no evidence, but worth a look."""
    fault: str | None = None
    """Why its predictions cannot be targets at all; there are no findings then."""

    def problem(self, name: str) -> str | None:
        """What is wrong with the teacher of that name, or None."""
        if self.fault:
            return f"the {name} cannot teach, {self.fault}: check teacher.checkpoint"
        return f"the {name} is better with {self.findings[0]}" if self.findings else None


def check_teacher(
    network: Classifier, batches: Iterable[Batch], precision: str = "fp32"
) -> TeacherCheck:
    """Compare what is given with everything that is often confused with it.

    Args:
        batches: uint8 views at any size, with the teacher's class numbers as labels where known.
    """
    variants = {GIVEN: network, SWAPPED: network}
    for name, (mean, std) in NORMALISATIONS.items():
        if not _close(mean, std, network):
            other = Classifier(network.model, input_size=network.input_size, mean=mean, std=std)
            variants[f"normalisation {name}"] = other.to(next(network.parameters()).device)
    probabilities: dict[str, list[np.ndarray]] = {name: [] for name in variants}
    labels: list[np.ndarray] = []
    faulty: list[str] = []
    first: list[tuple[Tensor, Tensor]] = []  # enough answers to see whether they are all the same
    with torch.inference_mode():
        for batch in batches:
            readable = batch.weight > 0
            pixels = batch.images[readable]
            if not len(pixels):
                continue
            labels.append(batch.labels[readable].cpu().numpy())
            for name, variant in variants.items():
                with autocast(pixels.device, precision):
                    logits = variant(pixels.flip(-1) if name == SWAPPED else pixels)
                log_probs = logits.float().log_softmax(-1)
                probabilities[name].append(log_probs.exp().cpu().numpy())
                if name == GIVEN:
                    rows = readable.nonzero().flatten()[not_finite(log_probs)]
                    faulty += [batch.ids[i] for i in rows.tolist()]
                    first += [(log_probs, pixels)] * (len(labels) <= MIN_DIFFERENT_IMAGES)
    images = sum(map(len, labels))
    if not images:
        return TeacherCheck(0, 0, {}, {}, [])
    if faulty:
        fault = f"its predictions are not finite (NaN or infinite) for {len(faulty)} of {images} "
        return TeacherCheck(images, 0, {}, {}, [], fault=f"{fault}images ({samples(faulty)})")
    answers = {name: answers_of(np.concatenate(parts)) for name, parts in probabilities.items()}
    check = compare(network, answers, np.concatenate(labels))
    if not check.findings and constant(*map(torch.cat, zip(*first, strict=True))):
        fault = f"it predicts exactly the same for {images} different images"
        return TeacherCheck(images, 0, {}, {}, [], check.hints, fault)
    return check


def compare(network: Classifier, answers: dict[str, Answers], labels: np.ndarray) -> TeacherCheck:
    """
    Args:
        answers: under each variant of the preprocessing, `GIVEN` among them.
        labels: int64 [n], the teacher's class numbers, -1 where they are not known.
    """
    known = labels >= 0
    information = {name: round(a.information, 4) for name, a in answers.items()}
    count = int(known.sum())
    if count == 0:
        findings, hints = _without_labels(network, answers)
        return TeacherCheck(len(labels), 0, {}, information, findings, hints)
    correct = {name: a.best[known] == labels[known] for name, a in answers.items()}
    correct |= _orders(answers[GIVEN].best[known], labels[known], network.num_classes)
    top1 = {name: float(x.mean()) for name, x in correct.items()}
    better = [name for name, x in correct.items() if name != GIVEN and _better(x, correct[GIVEN])]
    findings = [
        f"{name}: {top1[name]:.1%} top-1 instead of {top1[GIVEN]:.1%}{_advice(name)}"
        for name in sorted(better, key=lambda name: (top1[name], name), reverse=True)
    ]
    told, most = answers[GIVEN].information, math.log(min(network.num_classes, len(labels)))
    wrong = count >= FEWEST_LABELED and near_chance(top1[GIVEN], network.num_classes)
    if wrong and not findings and told > SURE * most:
        findings.append(
            f"another class order: its predictions are sure and varied (they tell {told:.2f} of "
            f"{most:.2f} nats about an image) but {top1[GIVEN]:.1%} of them are right; the labels "
            "count the classes in another order than its outputs, or are of other classes (too few "
            "images of each class to say which order)"
        )
    return TeacherCheck(len(labels), count, top1, information, findings)


def _advice(name: str) -> str:
    if name.startswith("normalisation"):
        mean, std = NORMALISATIONS[name.removeprefix("normalisation ")]
        shown = [[round(x, 4) for x in values] for values in (mean, std)]
        return f" (set teacher.mean to {shown[0]} and teacher.std to {shown[1]})"
    if name == SWAPPED:
        return " (the weights want BGR: swap the input channels of its first layer)"
    return " (the labels count the classes in another order than the teacher's outputs)"


def _without_labels(
    network: Classifier, answers: dict[str, Answers]
) -> tuple[list[str], list[str]]:
    """Findings and hints of what predictions tell about an image.

    On images of another domain that hardly depends on preprocessing, and may well be more under a
    wrong one (docs/teacher-check.md has numbers): a hint. But pixel values that are a hundred times
    too large or too small leave so little to be told that it is evidence.
    """
    given = answers[GIVEN].information
    findings, hints = [], []
    for name, answer in sorted(answers.items(), key=lambda x: (-x[1].information, x[0])):
        told = f"{name}: predictions tell {answer.information:.2f} nats about an image instead of"
        factor = _scale(name, network)
        if max(factor, 1 / factor) > OTHER_SCALE and answer.information > 1.5 * given + 0.1:
            findings.append(
                f"{told} {given:.2f}, as pixel values are {max(factor, 1 / factor):.0f} times too "
                f"{'large' if factor > 1 else 'small'} now (judged without labels){_advice(name)}"
            )
        elif answer.information > 1.2 * given + 0.1:
            hints.append(f"{told} {given:.2f}; without labels that proves nothing")
    return findings, hints


def _scale(name: str, network: Classifier) -> float:
    """How much larger pixel values are as given than under a variant."""
    if not name.startswith("normalisation"):
        return 1.0
    _, std = NORMALISATIONS[name.removeprefix("normalisation ")]
    return float(np.mean(std) / np.mean(network.std))


def _orders(best: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """bool [n]: what is right when the teacher's outputs are read in another order.

    Orders that are often met are named. Any other is found from one half of the images (the
    assignment with most hits) and tried on the other half, so that it cannot flatter itself.
    """
    as_text = np.array(sorted(range(classes), key=str))
    orders = {
        "class order shifted up by one": (best + 1) % classes == labels,
        "class order shifted down by one": (best - 1) % classes == labels,
        "class order reversed": classes - 1 - best == labels,
        "class order sorted as text": as_text[best] == labels,
        "class order sorted as text, inverted": np.argsort(as_text)[best] == labels,
    }
    orders = {  # with two classes some of these are the same
        name: x
        for i, (name, x) in enumerate(orders.items())
        if not any(np.array_equal(x, other) for other in list(orders.values())[:i])
    }
    if not is_installed("scipy"):
        say_left_out("scipy", "only well-known orders of the teacher's classes are tried")
        return orders
    from scipy.optimize import linear_sum_assignment

    correct = np.zeros(len(labels), bool)
    # Among the classes that occur: all of them squared would be gigabytes for ImageNet-21k.
    predicted, row = np.unique(best, return_inverse=True)
    actual, column = np.unique(labels, return_inverse=True)
    half = np.arange(len(labels)) % 2 == 0
    for learn, test in ((half, ~half), (~half, half)):
        counts = np.zeros((len(predicted), len(actual)))
        np.add.at(counts, (row[learn], column[learn]), 1)
        order = np.full(len(predicted), -1)
        rows, columns = linear_sum_assignment(counts, maximize=True)
        seen = counts[rows, columns] > 0  # the others are no more than a guess
        order[rows[seen]] = columns[seen]
        correct[test] = order[row[test]] == column[test]
    if correct.sum() > max(x.sum() for x in orders.values()):  # else the named one explains it
        orders["class order permuted"] = correct
    return orders


def _better(correct: np.ndarray, given: np.ndarray) -> bool:
    """Significantly (McNemar 1947, at three deviations), and by two points at least; bool [n]
    each."""
    only, lost = int((correct & ~given).sum()), int((given & ~correct).sum())
    return only - lost > max(3 * math.sqrt(only + lost), 0.02 * len(correct))


def answers_of(probabilities: np.ndarray) -> Answers:
    """
    Args:
        probabilities: float [n, classes]; rows with NaN tell nothing.
    """

    def entropy(p: np.ndarray) -> np.ndarray:
        return -(p * np.log(np.maximum(p, 1e-30))).sum(-1)

    finite = ~np.isnan(probabilities).any(-1)
    best = np.where(finite, probabilities.argmax(-1), -1)
    if not finite.any():
        return Answers(best, 0.0)
    p = probabilities[finite]
    return Answers(best, float(entropy(p.mean(0)) - entropy(p).mean()))


def _close(mean: tuple[float, ...], std: tuple[float, ...], network: Classifier) -> bool:
    """No image tells these from what is given."""
    return np.allclose(mean, network.mean, atol=0.02) and np.allclose(
        std, network.std, rtol=0.05, atol=0
    )
