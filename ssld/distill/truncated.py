"""Divergences where of the teacher's distribution only the k likeliest classes are known.

All classes outside of them, the tail, are taken as one class: its probability is known of both
networks, of the teacher because it is stored. Let T be the tail, a = t(T) and b = s(T) its
probabilities by teacher and student, t' and s' the distributions over the k classes and the tail,
and t_T, s_T those within the tail, t_T(i) = t(i) / a.

**What is lost.** For i in T, t(i) / s(i) = (a / b) (t_T(i) / s_T(i)), so that the sum over the tail
in KL splits (the chain rule of relative entropy; Cover and Thomas 2006, theorem 2.5.3):

    KL(t|s) = KL(t'|s') + a KL(t_T|s_T)

and with it, since m = (t + s) / 2 has the probability (a + b) / 2 in the tail and there the
distribution m_T = (a t_T + b s_T) / (a + b),

    soft CE        = soft CE'        + a CE(t_T, s_T)
    symmetric KL   = symmetric KL'   + (a KL(t_T|s_T) + b KL(s_T|t_T)) / 2
    JS             = JS'             + (a KL(t_T|m_T) + b KL(s_T|m_T)) / 2

What is added is never negative: the truncated divergence is a lower bound. With k = all classes
there is no tail, and both are equal.

**How much.** m_T >= a / (a + b) t_T in every class, so KL(t_T|m_T) <= ln(1 + b / a), likewise of s:

    0 <= JS - JS' <= (a ln(1 + b / a) + b ln(1 + a / b)) / 2 <= (a + b) / 2 ln 2

whatever the networks say within the tail. KL has no such bound, as a student may call a class of
the tail impossible; but from the student's logits z, with r the largest less the smallest of them
in the tail and n its classes, -ln s_T(i) = ln sum exp(z_j - z_i) <= ln n + r, so

    0 <= KL - KL' <= soft CE - soft CE' <= a (ln n + r)

and the symmetric KL adds half of that to half of b (ln n + r of the teacher's log-probabilities).
Values at a temperature are multiplied by its square, and so are the bounds. As the tail's part of
the gradient pushes the student's tail to the teacher's mass and leaves its shape alone, a student
learns nothing of classes that are never among the k.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def with_tail(logits: Tensor, classes: Tensor, temperature: float = 1.0) -> Tensor:
    """Logits of the named classes and of all others as one: at this temperature their softmax is
    what the softmax of `logits` gives each of them together.

    Args:
        logits: float [b, classes].
        classes: int64 [b, k], different ones.

    Returns:
        float32 (float64 of float64) [b, k + 1], the tail last; [b, k] where there are no others.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    named = logits.gather(-1, classes)
    if classes.shape[-1] == logits.shape[-1]:
        return named
    others = logits.scatter(-1, classes, -torch.inf)
    tail = temperature * (others / temperature).logsumexp(-1, keepdim=True)
    return torch.cat([named, tail], dim=-1)


def spread(classes: Tensor, log_probs: Tensor, num_classes: int) -> Tensor:
    """Log-probabilities of all classes with the tail spread evenly, float [b, num_classes].

    Of all distributions with these k probabilities it is that of the largest entropy.

    Args:
        classes: int64 [b, k].
        log_probs: float [b, k + 1], the tail last, or [b, k] where k is all of them.
    """
    k = classes.shape[-1]
    full = log_probs.new_empty(len(classes), num_classes)
    if k < num_classes:
        full[:] = log_probs[:, k:] - math.log(num_classes - k)
    return full.scatter(-1, classes, log_probs[:, :k])
