"""The feature term: a trained projection of the student's features against the teacher's.

A linear layer takes the student's pooled features to the teacher's, as the regressor of FitNets
(Romero et al. 2015, arXiv:1412.6550, equation 3) does for a hidden layer. *Deviation*: the mean of
the squares instead of half their sum, so that the size of the loss does not grow with the teacher's
width. That DINO's features alone teach a backbone well is LightlyTrain's finding, whose losses are
others.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssld.models.classifier import Classifier
from ssld.models.teacher import Teacher

TRAINING_SCALE = {"cosine": 12.0, "l2": 10.0}
"""Factors in training only, so that all terms train at the learning rate of a divergence: the
gradient of an untrained student is then about KL's (medians over five students and two teachers, of
6 to 70 and 3 to 128; benchmarks/feature_gradients.py, docs/features.md)."""


def cosine(projected: Tensor, features: Tensor) -> Tensor:
    """1 − p·t / (‖p‖ ‖t‖), from 0 to 2; [b, d] twice -> [b]."""
    return 1 - F.cosine_similarity(projected, features, dim=-1)


def l2(projected: Tensor, features: Tensor) -> Tensor:
    """‖p − t‖² / d; [b, d] twice -> [b]."""
    return (projected - features).square().mean(-1)


def feature_loss(name: str, projected: Tensor, features: Tensor) -> Tensor:
    """One value per image.

    Args:
        name: `cosine` or `l2`.
        projected: [b, d], the student's features after the projection, any float dtype.
        features: [b, d], the teacher's.

    Returns:
        [b], float32 (float64 for float64 features).
    """
    if projected.dtype != torch.float64:
        projected = projected.float()
    return {"cosine": cosine, "l2": l2}[name](projected, features.to(projected.dtype))


def training_feature_loss(name: str, projected: Tensor, features: Tensor) -> Tensor:
    """`feature_loss` times its `TRAINING_SCALE`."""
    return TRAINING_SCALE[name] * feature_loss(name, projected, features)


def open_projection(student: Classifier, teacher: Teacher, seed: int) -> nn.Linear:
    """The projection before the first step: [b, student's d] -> [b, teacher's d]."""
    torch.manual_seed(seed)
    return nn.Linear(student.feature_size, teacher.networks[0].feature_size)
