"""The losses by name: a new one is a function and a line here.

This file does not import torch, so that a wrong name is refused before anything else is imported.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Loss:
    """A divergence between what the teacher and what the student predicts."""

    function: str
    """`module:function` of the student's and the teacher's log-probabilities, [b, classes] each,
    which gives a value per image, [b]."""
    training_scale: float = 1.0
    """Factor in training only, so that all losses train at the same learning rate: the gradient at
    an untrained student is then about KL's (docs/divergences.md)."""


LOSSES = {
    "js": Loss("ssld.distill.divergence:js", 16.0),
    "symmetric_kl": Loss("ssld.distill.divergence:symmetric_kl"),
    "kl": Loss("ssld.distill.divergence:kl"),
    "soft_ce": Loss("ssld.distill.divergence:soft_ce"),
}
