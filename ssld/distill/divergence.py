"""Divergences between what the teacher and what the student predicts.

Everything is computed in log space from log-softmax in float32 (float64 stays float64): with logits
of ±1e4, identical predictions or float16 inputs, values and gradients are finite. `t` is the
teacher's, `s` the student's distribution over classes.
"""

from __future__ import annotations

import math
from pkgutil import resolve_name

import torch
from torch import Tensor
from torch.nn import functional as F

from ssld.distill.losses import LOSSES


def kl(log_s: Tensor, log_t: Tensor) -> Tensor:
    """KL(t‖s) = Σ t (log t − log s); [b, classes] twice -> [b]."""
    return _expect(log_t, log_t - log_s)


def soft_ce(log_s: Tensor, log_t: Tensor) -> Tensor:
    """Cross-entropy −Σ t log s: KL(t‖s) plus the teacher's entropy."""
    return _expect(log_t, -log_s)


def symmetric_kl(log_s: Tensor, log_t: Tensor) -> Tensor:
    """½[KL(t‖s) + KL(s‖t)] = ½ Σ (t − s)(log t − log s), half the Jeffreys divergence.

    What the reference implementation calls JS (ppcls/loss/dmlloss.py).
    """
    return 0.5 * (_expect(log_t, log_t - log_s) + _expect(log_s, log_s - log_t))


def js(log_s: Tensor, log_t: Tensor) -> Tensor:
    """Jensen-Shannon divergence ½ KL(t‖m) + ½ KL(s‖m), m = ½(t + s); at most ln 2 (Lin 1991)."""
    log_m = torch.logaddexp(log_s, log_t) - math.log(2)
    return 0.5 * (_expect(log_t, log_t - log_m) + _expect(log_s, log_s - log_m))


def skewed_js(log_s: Tensor, log_t: Tensor, skew: float) -> Tensor:
    """[(1−π) KL(t‖m) + π KL(s‖m)] / (π (1−π)) with m = (1−π) t + π s and π = `skew`.

    The skewed Jensen-Shannon divergence (Lin 1991, section IV) over its weight. Near s = t it is
    ½ Σ (s−t)²/t for every π; π = ½ is 4 JS, and π -> 1 tends to KL(t‖s), which is returned there.
    """
    if skew > 1 - 1e-3:
        return kl(log_s, log_t)
    log_m = torch.logaddexp(math.log(1 - skew) + log_t, math.log(skew) + log_s)
    to_t, to_s = _expect(log_t, log_t - log_m), _expect(log_s, log_s - log_m)
    return to_t / skew + to_s / (1 - skew)


def divergence(
    name: str,
    student_logits: Tensor,
    teacher_log_probs: Tensor,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """One value per image.

    Args:
        name: a key of `LOSSES`.
        student_logits: [b, classes], any float dtype.
        teacher_log_probs: [b, classes], log-probabilities at the same temperature.
        temperature: the result is multiplied by its square, so that the gradient's size does not
            depend on it (Hinton et al. 2015, section 2).

    Returns:
        [b], float32 (float64 for float64 logits).
    """
    if student_logits.dtype != torch.float64:
        student_logits = student_logits.float()
    log_s = F.log_softmax(student_logits / temperature, dim=-1)
    # Finite, or 0 * -inf is NaN; exact for all but the symmetric KL, which is truly infinite there.
    log_t = teacher_log_probs.to(log_s.dtype).clamp(min=-1e5)
    return resolve_name(LOSSES[name].function)(log_s, log_t) * temperature**2


def training_divergence(
    name: str, student_logits: Tensor, teacher_log_probs: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """`divergence` times the loss's `training_scale`."""
    value = divergence(name, student_logits, teacher_log_probs, temperature=temperature)
    return value * LOSSES[name].training_scale


def _expect(log_weights: Tensor, values: Tensor) -> Tensor:
    return (log_weights.exp() * values).sum(-1)
