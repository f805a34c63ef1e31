"""Divergences over k classes and a tail: what they lose, and how much at most."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ssld.distill.divergence import divergence
from ssld.distill.losses import LOSSES
from ssld.distill.truncated import spread, with_tail
from ssld.labels.build import top_and_tail

NAMES = sorted(LOSSES)
ROWS, CLASSES = 64, 9


def pair(scale: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The student's and the teacher's logits, float64 [b, classes]."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(scale * torch.randn(2, ROWS, CLASSES, generator=generator, dtype=torch.float64))


def truncated(name: str, logits: Tensor, log_t: Tensor, k: int, temperature: float) -> Tensor:
    classes, values, tail = top_and_tail(log_t, k)
    known = torch.cat([values, tail[:, None]], -1) if k < CLASSES else values
    return divergence(name, with_tail(logits, classes, temperature), known, temperature=temperature)


def within_tail(log_p: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of the tail [b], and the distribution within it, 0 elsewhere [b, classes]."""
    p = log_p.exp().scatter(-1, classes, 0.0)
    return p.sum(-1), p / p.sum(-1, keepdim=True)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return torch.where(p > 0, p * (p / q).log(), 0.0).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("k", [1, 4, CLASSES - 1])
def test_what_is_lost_is_what_the_docstring_says(k, temperature):
    z, logits_t = pair()
    log_t = F.log_softmax(logits_t / temperature, -1)
    log_s = F.log_softmax(z / temperature, -1)
    classes = log_t.topk(k).indices
    a, t = within_tail(log_t, classes)
    b, s = within_tail(log_s, classes)
    m = (a[:, None] * t + b[:, None] * s) / (a + b)[:, None]
    cross = -torch.where(t > 0, t * s.log(), 0.0).sum(-1)
    expected = {
        "kl": a * kl(t, s),
        "soft_ce": a * cross,
        "symmetric_kl": (a * kl(t, s) + b * kl(s, t)) / 2,
        "js": (a * kl(t, m) + b * kl(s, m)) / 2,
    }
    for name in NAMES:
        exact = divergence(name, z, log_t, temperature=temperature)
        lost = exact - truncated(name, z, log_t, k, temperature)
        entropy = a * -torch.where(t > 0, t * t.log(), 0.0).sum(-1) if name == "soft_ce" else 0
        assert torch.allclose(lost, expected[name] * temperature**2, atol=1e-10), name
        assert (lost >= entropy - 1e-12 if name == "soft_ce" else lost >= -1e-12).all()


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("k", [1, 4, CLASSES - 1])
def test_bounds(k, scale):
    z, logits_t = pair(scale)
    log_t, log_s = F.log_softmax(logits_t, -1), F.log_softmax(z, -1)
    classes = log_t.topk(k).indices
    (a, _), (b, _) = within_tail(log_t, classes), within_tail(log_s, classes)
    n = CLASSES - k

    def spans(logits: Tensor) -> Tensor:
        least = logits.scatter(-1, classes, torch.inf).amin(-1)
        return math.log(n) + logits.scatter(-1, classes, -torch.inf).amax(-1) - least

    of_kl, shares = a * spans(z), b / a
    narrow = (a * torch.log1p(shares) + b * torch.log1p(1 / shares)) / 2
    most = {
        "kl": of_kl,
        "soft_ce": of_kl,
        "symmetric_kl": (of_kl + b * spans(log_t)) / 2,
        "js": narrow,
    }
    assert (narrow <= (a + b) / 2 * math.log(2) + 1e-12).all()
    for name in NAMES:
        lost = divergence(name, z, log_t) - truncated(name, z, log_t, k, 1.0)
        assert (lost <= most[name] + 1e-9).all() and (lost >= -1e-9).all(), name


@pytest.mark.parametrize("name", NAMES)
def test_all_classes_lose_nothing(name):
    z, logits_t = pair()
    log_t = F.log_softmax(logits_t / 2, -1)
    z.requires_grad_()
    exact, whole = (
        divergence(name, z, log_t, temperature=2.0), truncated(name, z, log_t, CLASSES, 2.0)
    )  # fmt: skip
    torch.testing.assert_close(whole, exact)
    gradients = [torch.autograd.grad(x.sum(), z)[0] for x in (whole, exact)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [3, CLASSES - 1])
def test_gradcheck(name, k):
    z, logits_t = pair()
    log_t = F.log_softmax(logits_t[:4], -1)
    assert torch.autograd.gradcheck(
        lambda x: truncated(name, x, log_t, k, 2.0), z[:4].requires_grad_()
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_saturated_is_finite(name, dtype):
    z = (1e4 * torch.eye(4, CLASSES)).to(dtype).requires_grad_()
    log_t = F.log_softmax(1e4 * torch.eye(CLASSES)[1:5], -1)  # nothing at all in the tail
    value = truncated(name, z, log_t, 5, 1.0)
    value.sum().backward()
    assert value.dtype == torch.float32 and value.isfinite().all()
    assert z.grad is not None and z.grad.isfinite().all()


@pytest.mark.parametrize("k", [2, CLASSES])
def test_a_spread_tail_has_the_known_probabilities(k):
    _, logits_t = pair()
    log_t = F.log_softmax(logits_t, -1)
    classes, values, tail = top_and_tail(log_t, k)
    known = torch.cat([values, tail[:, None]], -1) if k < CLASSES else values
    full = spread(classes, known, CLASSES)
    assert torch.allclose(full.exp().sum(-1), torch.ones(ROWS, dtype=torch.float64))
    assert torch.equal(full.gather(-1, classes), values)
    entropy = -(full.exp() * full).sum(-1)
    exact = -(log_t.exp() * log_t).sum(-1)
    assert (entropy >= exact - 1e-12).all()
