"""Whether a detector learns from unlabeled images, and if not why: how semi-supervised detectors
fail silently elsewhere, each named with its likely cause in the verdict of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from downstream.dense.preflight import Readable
from downstream.dense.task import JUDGED_AFTER
from downstream.detection.config import BoxAugmentConfig, BoxTestConfig
from downstream.detection.inference import predict
from downstream.detection.model import DetectionModel
from downstream.sed.config import ConsistencyConfig
from ssld.data.decode import Unreadable, decode
from ssld.engine.run_folder import History

LOOKED_AT = 8
"""Unlabeled images in which an evaluation looks for boxes."""
LEAST_SCORE = 0.05
"""Of a box that counts as found, also of DETR, which gives one for each query."""
NOTHING = 1e-8
"""A loss below is 0: of float32 logits that are the same."""
FROZEN = 0.01
"""Share of the student's way from its first weights: a teacher that went less is frozen."""
FALLEN = 0.5
"""Share of the best AP so far: a teacher below collapses."""
LEAST_AP = 0.05
"""Of the best, from which on a fall says something."""


@dataclass(frozen=True)
class Look:
    """What the teacher says of a few unlabeled images."""

    images: int
    scores: list[float]
    """Of all boxes that are found."""
    labels: list[int]
    proposals: list[int] | None
    """By image, of a detector of two stages."""

    def metrics(self) -> dict[str, float]:
        """Boxes and proposals per image, their mean score, and how many classes there are."""
        images = max(self.images, 1)
        known = {
            "unlabeled_boxes": len(self.scores) / images,
            "unlabeled_score": sum(self.scores) / max(len(self.scores), 1),
            "unlabeled_classes": float(len(set(self.labels))),
        }
        if self.proposals is not None:
            known["unlabeled_proposals"] = sum(self.proposals) / images
        return known


def look_at(
    network: DetectionModel,
    sources: Sequence[Readable],
    augment: BoxAugmentConfig,
    device: torch.device,
) -> Look:
    """What a network, in eval mode, finds in `LOOKED_AT` evenly spread images, seen once."""
    rpn = getattr(network.model, "rpn", None)
    proposals: list[int] = []
    images, scores, labels = 0, [], []
    hook = rpn and rpn.register_forward_hook(lambda *x: proposals.append(len(x[2][0][0])))
    try:
        for pixels in _pictures(sources):
            found = predict(network, pixels.to(device), augment, BoxTestConfig())
            seen = found["scores"] >= LEAST_SCORE
            images += 1
            scores += found["scores"][seen].tolist()
            labels += found["labels"][seen].tolist()
    finally:
        if hook:
            hook.remove()
    return Look(images, scores, labels, proposals if rpn else None)


def _pictures(sources: Sequence[Readable]) -> Iterator[Tensor]:
    """uint8 [h, w, 3] of those that can be read."""
    places = [(source, row) for source in sources for row in range(len(source))]
    for i in sorted({k * len(places) // LOOKED_AT for k in range(LOOKED_AT)}):
        source, row = places[i]
        try:
            yield torch.from_numpy(np.ascontiguousarray(decode(source.read(row))))
        except (OSError, Unreadable):
            continue


def symptoms(
    settings: ConsistencyConfig,
    history: History,
    *,
    student: nn.Module,
    teacher: nn.Module,
    initial: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    metric: str,
    metrics: Mapping[str, float],
    look: Look | None,
    classes: int,
    share: float,
) -> list[str]:
    """What is wrong, in a sentence each.

    Args:
        initial: the student's parameters before the first step.
        buffers: the teacher's, before the first step.
        metric, metrics: of this evaluation, which is of the teacher.
        look: at unlabeled images.
        classes: of which there are labeled boxes.
        share: of the run that is done.
    """
    evaluations = history.evaluations()
    last = evaluations[-1]["step"] if evaluations else 0
    lines = [line for line in history.training() if line["step"] > last]
    found = [*_stuck(settings, lines), *_frozen(student, teacher, initial)]
    found += _left_out(student, teacher, buffers)
    found += _fallen([x[metric] for x in evaluations if metric in x], metrics.get(metric))
    if look is not None and look.images and share >= JUDGED_AFTER:
        found += _poor(look, classes)
    return [f"not learning as it should from unlabeled images: {one}" for one in found]


def _stuck(settings: ConsistencyConfig, lines: Sequence[Mapping[str, Any]]) -> list[str]:
    weights = {"scale": settings.scale_weight, "distill": settings.distill_weight}
    causes = {
        "scale": "scores that are the same for any picture, or no unlabeled image that can be read",
        "distill": "a strong view that is the weak one (settings of `strong`), scores that are the "
        "same for any picture, or with `consistency.soft` false a teacher that is never sure "
        "(lower consistency.hard_threshold)",
    }
    return [
        f"the losses {name}_classes and {name}_boxes are stuck at 0; likely causes: {causes[name]}"
        for name, weight in weights.items()
        if weight and lines and all(_loss(line, name) < NOTHING for line in lines)
    ]


def _loss(line: Mapping[str, Any], name: str) -> float:
    return line.get(f"{name}_classes", 1.0) + line.get(f"{name}_boxes", 1.0)


def _frozen(student: nn.Module, teacher: nn.Module, initial: Mapping[str, Tensor]) -> list[str]:
    ways = [_way(network, initial) for network in (student, teacher)]
    if ways[0] == 0 or ways[1] >= FROZEN * ways[0]:
        return []
    return [
        f"the teacher is frozen: since the first step its weights went {ways[1]:.2g}, the "
        f"student's {ways[0]:.2g}; likely causes: an ema.decay too near to 1, or an average that "
        "is not updated"
    ]


def _way(network: nn.Module, initial: Mapping[str, Tensor]) -> float:
    """The distance of all parameters from where they began."""
    squares = [
        (x.detach().cpu().double() - initial[name].double()).square().sum().item()
        for name, x in network.named_parameters()
        if name in initial
    ]
    return math.sqrt(sum(squares))


def _left_out(student: nn.Module, teacher: nn.Module, buffers: Mapping[str, Tensor]) -> list[str]:
    """Statistics that move in the student and not in the teacher."""
    own, averaged = dict(student.named_buffers()), dict(teacher.named_buffers())
    names = [
        name
        for name, first in buffers.items()
        if first.is_floating_point()
        and not torch.equal(own[name], first)
        and torch.equal(averaged[name], first)
    ]
    if not names:
        return []
    return [
        f"the teacher has the statistics of batch norm that it began with ({len(names)} buffers, "
        f"{names[0]} for one), while the student's move; likely cause: an average of parameters "
        "alone"
    ]


def _fallen(before: Sequence[float], now: float | None) -> list[str]:
    best = max(before, default=0.0)
    if now is None or best < LEAST_AP or now >= FALLEN * best:
        return []
    return [
        f"the teacher collapses: it had {best:.4f} and has {now:.4f}; likely causes: a student "
        "that learns its teacher's mistakes faster than labels correct them (lower "
        "consistency.distill_weight and consistency.scale_weight, or schedule.lr), or a teacher "
        "that is too quick (ema.end_decay nearer to 1)"
    ]


def _poor(look: Look, classes: int) -> list[str]:
    found = []
    if look.proposals is not None and not any(look.proposals):
        found.append(
            f"the first stage proposes nothing in {look.images} unlabeled images, so that the "
            "second learns nothing from them; likely causes: objectness that fell to 0 (lower "
            "consistency.scale_weight), or images much smaller than detector.args.anchor_sizes"
        )
    if not look.scores:
        found.append(
            f"the teacher finds nothing in {look.images} of them, no score reaches "
            f"{LEAST_SCORE:g}; likely causes: consistency that drove all scores to 0 (lower "
            "consistency.scale_weight and consistency.distill_weight), far too few steps, or "
            "unlabeled images of other things than the labeled ones"
        )
    elif len(set(look.labels)) == 1 and classes > 1:
        found.append(
            f"all {len(look.labels)} boxes that the teacher finds in {look.images} of them are of "
            f"one class, the labeled ones of {classes}; likely causes: labeled images that have "
            "nearly no other class (see preflight.md), far too few steps, a teacher that collapsed "
            "onto it, or unlabeled images of that class alone"
        )
    return found
