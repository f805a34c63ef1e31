"""The metrics of metrics.jsonl: what each key is called, how it is shown and which way is better.

A new metric is a line in `METRICS`; the task that measures it logs it under that key.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
    "feature_agreement": Metric("feature agreement"),
    "top1": Metric("top-1", chance="top1_chance", images="labeled"),
    "top5": Metric("top-5", images="labeled"),
    "knn": Metric("nearest neighbours"),
    "linear": Metric("linear probe"),
    "ece": Metric("calibration error", "lower"),
    "ap": Metric("AP"),
    "ap50": Metric("AP50"),
    "ap75": Metric("AP75"),
    "keypoint_ap": Metric("keypoint AP"),
    "keypoint_ap50": Metric("keypoint AP50"),
    "keypoint_ap75": Metric("keypoint AP75"),
    "mask_ap": Metric("mask AP"),
    "mask_ap50": Metric("mask AP50"),
    "mask_ap75": Metric("mask AP75"),
    "miou": Metric("mIoU"),
    "pixel_accuracy": Metric("pixel accuracy"),
    "mean_accuracy": Metric("mean accuracy of classes"),
}
NEAR = 0.05
"""Share of the way from chance to 1 on which a network has learned next to nothing."""
ONE_VIEW = "_one_view"
"""At the end of a key: what it is in one view alone, where images are seen in several."""
_AVERAGE_PRECISION = ("keypoint_ap", "mask_ap", "ap")
LOGGED = ("top1", "agreement1", "divergence", "feature_agreement", "knn", "linear")
LOGGED += ("keypoint_ap", "keypoint_ap50", "mask_ap", "mask_ap50", "ap", "ap50", "miou")
"""What a run prints after an evaluation."""
RECORDED = ("top1", "top5", "agreement1", "agreement5", "divergence", "feature_agreement")
RECORDED += ("knn", "linear", *_AVERAGE_PRECISION, "miou")
"""What results.csv holds of a trial, in this order."""
COMPARED = tuple(key for key in RECORDED if key != "top5")
"""What `ssld compare` shows of a run."""
WITHOUT_CHANCE = (*_AVERAGE_PRECISION, "miou")
"""Results of which no evaluation says what they are by chance."""
RESULTS = ("top1", "agreement1", "feature_agreement", *WITHOUT_CHANCE)
"""The first of these that a run has is its result; what finds keypoints or masks has `ap`, too."""
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


def wilson(hits: float, count: float, z: float = 1.959964) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927); (0, 1) when nothing was counted."""
    if count == 0:
        return 0.0, 1.0
    share, z2 = hits / count, z * z / count
    centre = (share + z2 / 2) / (1 + z2)
    half = z * math.sqrt(share * (1 - share) / count + z2 / (4 * count)) / (1 + z2)
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def near_chance(low: float, num_classes: int) -> bool:
    """Whether the lower end of a top-1's interval lies in the first 5 % of the way to 1."""
    chance = 1 / num_classes
    return low <= chance + NEAR * (1 - chance)


def too_weak(scores: Sequence[float]) -> str | None:
    """What is to be said beside a difference of scores that are all near 0, or None. By chance AP
    and mIoU of many classes are about 0, so it is the share of `near_chance`: so early in training
    a network's score says how far it came, not how good it becomes."""
    if not scores or not max(scores) < NEAR:
        return None
    return f"all scores are below {100 * NEAR:g} %, too weak for a difference to mean anything"


def too_few(count: int, num_classes: int) -> bool:
    """Whether a teacher that is right on all of `count` labeled images would seem near chance."""
    return near_chance(wilson(count, count)[0], num_classes)
