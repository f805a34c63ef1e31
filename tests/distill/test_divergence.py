"""Divergences against naive float64 formulas, gradcheck, saturation and the local ratios."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ssld.data.loading import Batch
from ssld.distill.config import LossConfig
from ssld.distill.distill import Distillation
from ssld.distill.divergence import divergence, js, kl, skewed_js, training_divergence
from ssld.distill.losses import LOSSES, Loss

NAMES = sorted(LOSSES)
TRUE_DIVERGENCES = ["js", "kl", "symmetric_kl"]


def naive(name, s, t):
    m = (s + t) / 2
    kl_of = lambda p, q: (p * (p / q).log()).sum(-1)  # noqa: E731
    return {
        "kl": kl_of(t, s),
        "soft_ce": -(t * s.log()).sum(-1),
        "symmetric_kl": (kl_of(t, s) + kl_of(s, t)) / 2,
        "js": (kl_of(t, m) + kl_of(s, m)) / 2,
    }[name]


def pair(classes=7, rows=5, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)
    return z[0], F.log_softmax(z[1], -1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_equals_naive_formula(name, temperature):
    logits, log_t = pair()
    expected = naive(name, (logits / temperature).softmax(-1), log_t.exp()) * temperature**2
    found = divergence(name, logits, log_t, temperature=temperature)
    torch.testing.assert_close(found, expected)
    single = divergence(name, logits.float(), log_t.float(), temperature=temperature)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name):
    logits, log_t = pair()
    assert torch.autograd.gradcheck(
        lambda z: divergence(name, z, log_t, temperature=2.0), logits.requires_grad_()
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("case", ["far", "same", "impossible"])
def test_saturated_is_finite(name, dtype, case):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype).requires_grad_()
    log_t = F.log_softmax(logits.detach().float(), -1)
    if case == "far":
        log_t = log_t.flip(-1)
    elif case == "impossible":
        log_t = torch.tensor([[0.0, -math.inf, -math.inf]] * 2)
    found = divergence(name, logits, log_t)
    found.sum().backward()
    assert found.isfinite().all() and logits.grad is not None and logits.grad.isfinite().all()
    if case == "same" and name != "soft_ce":
        assert found.abs().max() == 0


@pytest.mark.parametrize("name", TRUE_DIVERGENCES)
def test_zero_only_when_equal(name):
    logits, log_t = pair()
    assert (divergence(name, logits, log_t) > 0).all()
    assert divergence(name, log_t, log_t).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["js", "symmetric_kl"])
def test_symmetric(name):
    logits, log_t = pair()
    swapped = divergence(name, log_t, F.log_softmax(logits, -1))
    torch.testing.assert_close(divergence(name, logits, log_t), swapped)


def test_js_at_most_log_2():
    logits, log_t = pair(scale=50.0, rows=100)
    assert divergence("js", logits, log_t).max() <= math.log(2) + 1e-12


@pytest.mark.parametrize(("name", "factor"), [("kl", 0.5), ("symmetric_kl", 0.5), ("js", 0.125)])
def test_local_curvature(name, factor):
    logits, log_t = pair(scale=1.0)
    near = log_t + 1e-4 * logits
    t, s = log_t.exp(), near.softmax(-1)
    chi2 = ((s - t) ** 2 / t).sum(-1)
    torch.testing.assert_close(divergence(name, near, log_t), factor * chi2, rtol=1e-2, atol=0)


@pytest.mark.parametrize("skew", [0.1, 0.5, 0.9, 0.99])
def test_skewed_has_the_curvature_of_kl(skew):
    logits, log_t = pair(scale=1.0)
    near = F.log_softmax(log_t + 1e-4 * logits, -1)
    torch.testing.assert_close(skewed_js(near, log_t, skew), kl(near, log_t), rtol=1e-2, atol=0)


def test_skewed_ends():
    logits, log_t = pair(scale=1.0)
    log_s = F.log_softmax(logits, -1)
    torch.testing.assert_close(skewed_js(log_s, log_t, 0.5), 4 * js(log_s, log_t))
    torch.testing.assert_close(skewed_js(log_s, log_t, 0.998), kl(log_s, log_t), rtol=0.05, atol=0)


@pytest.mark.parametrize(("name", "factor"), [("js", 16), ("kl", 1)])
def test_training_scale(name, factor):
    logits, log_t = pair()
    found = training_divergence(name, logits, log_t)
    torch.testing.assert_close(found, factor * divergence(name, logits, log_t))


def test_a_loss_is_a_function_and_a_line(tmp_path, monkeypatch):
    """As a contributor adds one: its name is a setting, and a step trains with it."""
    source = "def tv(log_s, log_t):\n    return (log_s.exp() - log_t.exp()).abs().sum(-1) / 2\n"
    (tmp_path / "total_variation.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="loss.name is tv: give one of js, symmetric_kl, kl"):
        LossConfig(name="tv")
    monkeypatch.setitem(LOSSES, "tv", Loss("total_variation:tv", 3.0))
    torch.manual_seed(0)
    network, images = torch.nn.Linear(4, 3), torch.randn(8, 4)
    teacher: Any = lambda images, _: F.log_softmax(images[:, :3], -1)  # noqa: E731
    task = Distillation(teacher, LossConfig(name="tv"))
    batch = Batch(images, torch.ones(8), torch.full((8,), -1), [*"abcdefgh"], [])
    optimizer, values = torch.optim.SGD(network.parameters(), lr=0.5), []
    for _ in range(2):
        loss = task.losses(network, batch)["divergence"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    s, t = (F.softmax(x, -1) for x in (network(images), images[:, :3]))
    after = task.losses(network, batch)["divergence"]
    torch.testing.assert_close(after, 3 * (s - t).abs().sum(-1) / 2)
    assert after.mean().item() < values[1] < values[0]
