"""Losses on unlabeled images as loops in float64."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


def naive_probabilities(logits: list[float], background: int | None) -> list[float]:
    if background is None:
        return [1 / (1 + math.exp(-z)) for z in logits]
    total = sum(math.exp(z) for z in logits)
    return [math.exp(z) / total for z in logits]


def naive_kl(target: list[float], predicted: list[float], background: int | None) -> float:
    kl = sum(p * math.log(p / q) for p, q in zip(target, predicted, strict=True))
    if background is None:
        kl += sum(
            (1 - p) * math.log((1 - p) / (1 - q)) for p, q in zip(target, predicted, strict=True)
        )
    return kl


def naive_gap(p: list[float], q: list[float], background: int | None) -> float:
    apart = sum(abs(a - b) for a, b in zip(p, q, strict=True))
    return min(apart, 1.0) if background is None else apart / 2


def naive_mean(losses: Sequence[float], gaps: Sequence[float], bins: int | None) -> float:
    """Their mean; with bins equation 5."""
    if bins is None:
        return sum(losses) / max(1, len(losses))
    at = [min(int(g * bins), bins - 1) for g in gaps]
    sizes = Counter(at)
    return sum(loss / sizes[i] for loss, i in zip(losses, at, strict=True)) / bins


Said = tuple[list[float], list[list[float]]]
"""Of one anchor or proposal: its logits, and its box, or that of each class."""


def naive_pair(
    pairs: Sequence[tuple[Said, Said]],
    background: int | None,
    *,
    both_ways: bool,
    bins: int | None,
    squared: bool,
) -> tuple[float, float]:
    """Losses of classes and boxes of equation 2, or one way of equation 3."""
    kls, gaps, distances = [], [], []
    for (logits, boxes), (other_logits, other_boxes) in pairs:
        p, q = (naive_probabilities(x, background) for x in (logits, other_logits))
        back = naive_kl(q, p, background) if both_ways else 0.0
        kls.append(naive_kl(p, q, background) + back)
        gaps.append(naive_gap(p, q, background))
        norms = [math.dist(a, b) for a, b in zip(boxes, other_boxes, strict=True)]
        each = [x**2 / 4 for x in norms] if squared else norms
        distances.append(sum(each) / len(each))
    return naive_mean(kls, gaps, bins), naive_mean(distances, gaps, None)
