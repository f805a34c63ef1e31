"""The losses on unlabeled images of Scale-Equivalent Distillation (Guo et al. 2022, section 3).

The student sees a strong view X of an image and the same at 1 / 2^s of its size, the teacher, an
average of the student, a weak view X' of the same geometry. With sg for what is not learned from,

    L_scale   = KL(sg P(X), P(X/2^s)) + KL(sg P(X/2^s), P(X)) + |R(X) - R(X/2^s)|     (equation 2)
    L_distill = KL(sg P(X', teacher), P(X)) + |sg R(X', teacher) - R(X)|              (equation 3)

over all anchors, and of a network of two stages also over the proposals of both views; of DETR over
pairs of queries. KL terms are re-weighted (`reweighting.py`), distances of boxes are not.

What the paper leaves open, and what is done here:

- X is the strong view in both losses, and is shrunk by the mean of 2^s x 2^s pixels, for s = 1 what
  bilinear resizing is. So the student takes two passes, and the teacher one.
- P of classes that are asked one by one (RetinaNet, RPN) are Bernoulli distributions, whose KL is
  added up over the classes; of a softmax (box head, DETR) it is one categorical distribution.
- One histogram and one mean over all levels and images of the batch, on all processes; of RPN and
  box head each their own, and their losses are added.
- The box head has a box for each class: the mean of their distances.
- |.| is the mean of squares, unless `box_distance: norm` asks for it as printed.
- With hard labels only P of the teacher changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from downstream.detection.heads.torchvision_heads import Anchors, Raw
from downstream.sed.anchors import same_pair, scale_pair
from downstream.sed.config import ConsistencyConfig
from downstream.sed.predictions import (
    Pair,
    cross_entropy,
    distance,
    divergence,
    divergence_both_ways,
    gradients,
    hardened,
)
from downstream.sed.proposals import both, look, there
from downstream.sed.queries import matched_pair
from downstream.sed.reweighting import even, harmonised, weighted
from ssld.common.errors import InputError

Losses = tuple[Tensor, Tensor]
"""Of classes and of boxes, float32 [b] each."""
UNEVEN = 0.1
"""By how much of 2 the ratio of anchors of two levels may miss it: their sides are whole px."""


@dataclass(frozen=True)
class Compared:
    """What there is to compare in a batch."""

    scale: list[Pair]
    """The image and the small one."""
    distilled: list[Pair]
    """Teacher and student."""


@dataclass(frozen=True)
class Step:
    """Both networks and the views of a batch, of `unlabeled_losses`."""

    student: Any
    teacher: Any
    weak: Tensor
    strong: Tensor
    sizes: Tensor
    s: int
    settings: ConsistencyConfig

    @property
    def small_sizes(self) -> Tensor:
        """float32 [b, 2]: (h, w) of the picture in the small view, not rounded."""
        return self.sizes / 2**self.s

    def shrunk(self) -> Tensor:
        return F.avg_pool2d(self.strong, 2**self.s)


def unlabeled_losses(
    student: Any,
    teacher: Any,
    weak: Tensor,
    strong: Tensor,
    sizes: Tensor,
    *,
    s: int,
    settings: ConsistencyConfig,
) -> dict[str, Tensor]:
    """The losses of a batch of unlabeled images.

    Args:
        student, teacher: of one class, RetinaNet, FasterRCNN or DETR of
            `downstream/detection/heads`; the teacher in eval mode. It is not learned from.
        weak, strong: views of one geometry, float32 [b, 3, H, W], normalised; padded at the right
            and at the bottom with 0, to multiples of 2^s times the student's stride.
        sizes: int64 [b, 2], the (h, w) of each that is picture.
        s: the small view has 1 / 2^s of the size, s >= 1.

    Returns:
        {"scale_classes", "scale_boxes", "distill_classes", "distill_boxes"}: float32 [b],
        weighted; the mean over the images is the loss. A loss of weight 0 is left out, and so is
        the pass that it would take.

    Raises:
        ValueError: a wrong padding.
    """
    if any(side % (student.stride * 2**s) for side in strong.shape[-2:]):
        side = student.stride * 2**s
        raise ValueError(f"images of {tuple(strong.shape[-2:])} px are not padded to x {side} px")
    step = Step(student, teacher, weak, strong, sizes, s, settings)
    by_queries = hasattr(student, "queries")
    compared = _of_queries(step) if by_queries else _of_anchors(step)
    terms = {}
    if settings.scale_weight:
        scale = [_scale_losses(pair, settings, student.training) for pair in compared.scale]
        terms |= _terms("scale", settings.scale_weight, scale)
    if settings.distill_weight:
        each = [_distill_losses(pair, settings, student.training) for pair in compared.distilled]
        terms |= _terms("distill", settings.distill_weight, each)
    return terms


def require_equivalent_levels(student: Any) -> None:
    """Raise InputError where the anchors of a level are not twice as large as the next finer
    level's: the same offsets would be other boxes then."""
    for generator in (x for x in student.modules() if isinstance(x, Anchors)):
        sides = [sizes[0] for sizes in generator.sizes]
        if any(abs(b / a - 2) > 2 * UNEVEN for a, b in zip(sides, sides[1:], strict=False)):
            raise InputError(
                f"anchor_sizes is {sides}: scale consistency compares a level of an image with the "
                "next finer one of the image at half the size; give sides that double from level "
                "to level"
            )


def _terms(name: str, weight: float, losses: list[Losses]) -> dict[str, Tensor]:
    classes, boxes = (weight * torch.stack(part).sum(0) for part in zip(*losses, strict=True))
    return {f"{name}_classes": classes, f"{name}_boxes": boxes}


def _scale_losses(pair: Pair, settings: ConsistencyConfig, training: bool) -> Losses:
    """Equation 2."""
    large, small, _ = pair
    classes = divergence_both_ways(large, small)
    weights = _weights(pair, large.probabilities, settings, training)
    return weighted(classes, weights, training), _box_losses(pair, settings, training)


def _distill_losses(pair: Pair, settings: ConsistencyConfig, training: bool) -> Losses:
    """Equation 3; the first of the pair is the teacher's."""
    teacher, student, _ = pair
    if settings.soft:
        targets, classes = teacher.probabilities, divergence(teacher, student)
    else:  # KL is the cross-entropy where a label has no entropy
        targets = hardened(teacher, settings.hard_threshold)
        classes = cross_entropy(student, targets)
    weights = _weights(pair, targets, settings, training)
    return weighted(classes, weights, training), _box_losses(pair, settings, training)


def _box_losses(pair: Pair, settings: ConsistencyConfig, training: bool) -> Tensor:
    apart = distance(pair.first, pair.second, squared=settings.box_distance == "squared")
    return weighted(apart, even(pair.counted, training), training)


def _weights(pair: Pair, targets: Tensor, settings: ConsistencyConfig, training: bool) -> Tensor:
    """Of the classification of all that is compared, [b, n]; `targets` [b, n, classes] are the
    probabilities that the second of the pair is compared with."""
    if not settings.reweight:
        return even(pair.counted, training)
    g = gradients(targets, pair.second.probabilities, pair.second.background)
    return harmonised(g, pair.counted, settings.bins, training)


def _of_anchors(step: Step) -> Compared:
    """Of a detector with anchors, and of its second stage where it has one."""
    strong = step.student.raw(step.strong, step.sizes)
    small = weak = None
    if step.settings.scale_weight:
        small = step.student.raw(step.shrunk(), step.small_sizes)
    if step.settings.distill_weight:
        with torch.no_grad():
            weak = step.teacher.raw(step.weak, step.sizes)
    scale = [scale_pair(strong, small, step.sizes, step.s)] if small is not None else []
    distilled = [same_pair(weak, strong, step.sizes)] if weak is not None else []
    if hasattr(step.student, "refine"):
        second = _of_proposals(step, strong, small, weak)
        scale, distilled = scale + second.scale, distilled + second.distilled
    return Compared(scale, distilled)


def _of_proposals(step: Step, strong: Raw, small: Raw | None, weak: Raw | None) -> Compared:
    """Of the second stage. What the student says of all proposals in the strong view is asked in
    one pass; the other views are asked of their own and the strong view's. Without any proposal
    its losses are 0."""
    student, teacher, zoom = step.student, step.teacher, 2**step.s
    most = step.settings.proposals
    own = [x[:most] for x in student.propose(strong, step.sizes)]
    others = []
    if small is not None:
        found = student.propose(small, step.small_sizes)
        others.append([x[:most] * zoom for x in found])
    if weak is not None:
        others.append([x[:most] for x in teacher.propose(weak, step.sizes)])
    of_own, *of_others = look(student, strong.maps, [own, *others])
    scale, distilled = [], []
    if small is not None:
        shrunk = [[x / zoom for x in boxes] for boxes in (own, others[0])]
        second = both(*look(student, small.maps, shrunk))
        scale.append(Pair(both(of_own, of_others[0]), second, there(own, others[0])))
    if weak is not None:
        with torch.no_grad():
            first = both(*look(teacher, weak.maps, [own, others[-1]]))
        distilled.append(Pair(first, both(of_own, of_others[-1]), there(own, others[-1])))
    return Compared(scale, distilled)


def _of_queries(step: Step) -> Compared:
    """Of DETR."""
    weight = step.settings.match_iou
    strong = step.student.queries(step.strong, step.sizes)
    scale, distilled = [], []
    if step.settings.scale_weight:
        small = step.student.queries(step.shrunk(), step.small_sizes)
        scale.append(matched_pair(strong, small, weight))
    if step.settings.distill_weight:
        with torch.no_grad():
            weak = step.teacher.queries(step.weak, step.sizes)
        distilled.append(matched_pair(weak, strong, weight))
    return Compared(scale, distilled)
