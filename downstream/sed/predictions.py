"""What two views of an image are compared by, and how far apart they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Predictions:
    """What a network says of n things in each image: anchors, proposals or queries."""

    logits: Tensor
    """float32 [b, n, classes]."""
    boxes: Tensor
    """float32 [b, n, 4], or of every class that has a box [b, n, objects, 4]: as the network gives
    them."""
    background: int | None
    """The class that is no object, where one thing is of one class (softmax). None: each class is a
    question by itself (sigmoid), and the background is where all are answered no."""

    @cached_property
    def probabilities(self) -> Tensor:
        """float32 [b, n, classes], through which no gradient flows."""
        logits = self.logits.detach()
        return logits.sigmoid() if self.background is None else logits.softmax(-1)


class Pair(NamedTuple):
    """The same things in two views."""

    first: Predictions
    second: Predictions
    counted: Tensor
    """bool [b, n]: those that are in the picture; the others are padding."""


def cross_entropy(predicted: Predictions, targets: Tensor) -> Tensor:
    """float32 [b, n], of target probabilities [b, n, classes]: the sum over the classes, which of
    sigmoid classifiers is that of as many Bernoulli variables.

    Its gradient at the logits is p - p', of softmax and sigmoid alike (section 3.3), and is taken
    as that: so it is 0 to the last digit where nothing differs, and no logarithm is kept for it.
    """
    slope = ((predicted.probabilities - targets) * predicted.logits).sum(-1)
    return _entropy(predicted, targets) + (slope - slope.detach())


@torch.no_grad()
def _entropy(predicted: Predictions, targets: Tensor) -> Tensor:
    logits = predicted.logits
    if predicted.background is None:
        # log(1 + exp(z)) of functions that CPUs have vectorised: 10 times as fast as softplus.
        softplus = logits.relu() - logits.abs().sigmoid().log()
        return (softplus - targets * logits).sum(-1)
    flat = F.cross_entropy(logits.flatten(0, 1), targets.flatten(0, 1), reduction="none")
    return flat.view(logits.shape[:2])


def divergence(target: Predictions, predicted: Predictions) -> Tensor:
    """KL(p', p) float32 [b, n], where p' is the target's, through which no gradient flows (equation
    3)."""
    wanted = target.probabilities
    return cross_entropy(predicted, wanted) - _entropy(target, wanted)


def divergence_both_ways(first: Predictions, second: Predictions) -> Tensor:
    """KL(sg p, q) + KL(sg q, p) of equation 2, float32 [b, n], as one sum: (p - q) (z - z') over
    the classes, of softmax and sigmoid alike. With p - q stopped its gradients are those of the two
    terms, q - p at the logits of q and p - q at those of p; and no logarithm is taken."""
    apart = first.probabilities - second.probabilities
    return (apart * (first.logits - second.logits)).sum(-1)


@torch.no_grad()
def gradients(first: Tensor, second: Tensor, background: int | None) -> Tensor:
    """g of section 3.3, float32 [b, n] from 0 to 1: the sum over the classes of |p - p'|.

    The paper splits [0, 1] into bins, but two softmax distributions differ by up to 2 and C sigmoid
    ones by up to C. So those of a softmax are halved, and beyond 1 a sigmoid's count as 1: an
    anchor is rarely unsure between two classes. Of the RPN's one class both are |p - p'|.
    """
    g = (first - second).abs().sum(-1)
    return g.clamp(max=1) if background is None else g / 2


def distance(first: Predictions, second: Predictions, *, squared: bool) -> Tensor:
    """Between boxes, of equations 2 and 3, float32 [b, n]: the L2 norm as printed, or the mean of
    the squares of four coordinates. Where each class has a box, the mean over these: of all of
    them, as of all anchors."""
    apart = first.boxes - second.boxes
    each = apart.square().mean(-1) if squared else torch.linalg.vector_norm(apart, dim=-1)
    return each if each.dim() == 2 else each.mean(-1)


def hardened(target: Predictions, threshold: float) -> Tensor:
    """Hard labels as probabilities [b, n, classes]: 1 for a class of at least `threshold`, of a
    softmax for the best one. What has none is background."""
    probabilities = target.probabilities
    if target.background is None:
        return (probabilities >= threshold).float()
    objects = probabilities.clone()
    objects[..., target.background] = -1.0
    score, label = objects.max(-1)
    label = torch.where(score >= threshold, label, target.background % objects.shape[-1])
    return F.one_hot(label, objects.shape[-1]).float()
