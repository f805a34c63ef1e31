"""The metrics of metrics.jsonl: what each key is called, how it is shown and which way is better.

A new metric is a line in `METRICS`; the task that measures it logs it under that key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

NUMBER, SHARE = ".4g", ".1%"


@dataclass(frozen=True)
class Metric:
    """How a metric is spoken of."""

    label: str
    better: Literal["higher", "lower"] = "higher"
    format: str = SHARE
    chance: str | None = None
    """Key of what it is by chance, as logged beside it."""
    images: str | None = None
    """Key of the number of images of which it is a share."""

    def show(self, value: float) -> str:
        """The value as text."""
        return format(value, self.format)

    @property
    def best(self) -> Callable[..., Any]:
        """`max` or `min`."""
        return max if self.better == "higher" else min


METRICS = {
    "agreement1": Metric("agreement@1", chance="agreement_chance", images="images"),
    "agreement5": Metric("agreement@5", images="images"),
    "divergence": Metric("divergence", "lower", NUMBER),
    "top1": Metric("top-1", chance="top1_chance", images="labeled"),
    "top5": Metric("top-5", images="labeled"),
    "knn": Metric("nearest neighbours"),
    "linear": Metric("linear probe"),
    "ece": Metric("calibration error", "lower"),
    "ap": Metric("AP"),
    "ap50": Metric("AP50"),
    "ap75": Metric("AP75"),
    "miou": Metric("mIoU"),
    "pixel_accuracy": Metric("pixel accuracy"),
    "mean_accuracy": Metric("mean accuracy of classes"),
}
LOGGED = ("top1", "agreement1", "divergence", "knn", "linear", "ap", "ap50", "miou")
"""What a run prints after an evaluation."""
COMPARED = ("top1", "top5", "agreement1", "agreement5", "divergence", "knn", "linear", "ap", "miou")
"""What tables of several runs hold, results.csv in this order."""
RESULTS = ("top1", "agreement1", "ap", "miou")
"""The first of these that a run has is its result."""
CHANCE = {key: metric.chance for key, metric in METRICS.items() if metric.chance}


def images_of(key: str, evaluation: Mapping[str, Any]) -> float | None:
    """Of how many images a metric is a share; None where it is none, or that is not known."""
    count = METRICS[key].images
    return evaluation.get(count, evaluation.get("images")) if count else None


def beyond_chance(share: float, chance: float) -> float:
    """How much of what chance leaves over is reached, at most 1: Cohen's kappa (Cohen 1960,
    equation 1); 0 where chance leaves nothing."""
    return (share - chance) / (1 - chance) if chance < 1 else 0.0


def rank(known: Mapping[str, Any]) -> tuple[bool, float]:
    """The larger, the better. One with symptoms is behind all without; agreement@1 counts beyond
    chance, because where few classes occur a constant prediction agrees with the teacher, too.

    Args:
        known: see `ssld.health.verdict.noted`.
    """
    value = known["value"]
    if METRICS[known["metric"]].better == "lower":
        value = -value
    elif "chance" in known:
        value = beyond_chance(value, known["chance"])
    return not known.get("symptoms"), value if math.isfinite(value) else -math.inf
