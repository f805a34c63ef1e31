"""Divergences, gradients and distances of predictions, against loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from naive_losses import naive_kl, naive_probabilities
from torch import Tensor
from torch.testing import assert_close

from downstream.sed.predictions import (
    Predictions,
    cross_entropy,
    distance,
    divergence,
    divergence_both_ways,
    gradients,
    hardened,
)

KINDS = pytest.mark.parametrize("background", [None, 0, -1])


def predictions(background: int | None, seed: int = 0, classes: int = 4, n: int = 7) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, n, classes, generator=generator)
    return Predictions(logits, torch.randn(2, n, 4, generator=generator), background)


@KINDS
def test_they_are_what_a_loop_finds(background: int | None) -> None:
    target, predicted = predictions(background, 0), predictions(background, 1)
    kl = divergence(target, predicted)
    g = gradients(target.probabilities, predicted.probabilities, background)
    norms = distance(target, predicted, squared=False)
    squares = distance(target, predicted, squared=True)
    for i in range(2):
        for j in range(7):
            p, q = (
                naive_probabilities(x.logits[i, j].tolist(), background)
                for x in (target, predicted)
            )
            assert kl[i, j].item() == pytest.approx(naive_kl(p, q, background), abs=2e-6)
            apart = sum(abs(a - b) for a, b in zip(p, q, strict=True))
            assert g[i, j].item() == pytest.approx(
                min(apart, 1) if background is None else apart / 2, abs=1e-6
            )
            a, b = target.boxes[i, j].tolist(), predicted.boxes[i, j].tolist()
            assert norms[i, j].item() == pytest.approx(math.dist(a, b), rel=1e-6)
            assert squares[i, j].item() == pytest.approx(math.dist(a, b) ** 2 / 4, rel=1e-6)
    assert g.max() <= 1 and norms.shape == kl.shape == g.shape == (2, 7)


@KINDS
def test_the_gradient_is_that_of_the_formula(background: int | None) -> None:
    target, predicted = predictions(background, 0), predictions(background, 1)
    for one in (target, predicted):
        one.logits.requires_grad_()
    divergence(target, predicted).sum().backward()
    z = predicted.logits.detach().double().requires_grad_()
    p, wanted = z.softmax(-1), target.logits.detach().double().softmax(-1)
    if background is None:
        p, wanted = (torch.stack([x, 1 - x]) for x in (z.sigmoid(), target.probabilities.double()))
    (wanted * (wanted / p).log()).sum().backward()
    assert z.grad is not None
    assert_close(predicted.logits.grad, z.grad.float(), atol=1e-6, rtol=0)
    assert target.logits.grad is None  # sg


@KINDS
def test_both_ways_are_the_two_of_equation_2_and_so_are_their_gradients(
    background: int | None,
) -> None:
    def views() -> list[Predictions]:
        both = [predictions(background, 0), predictions(background, 1)]
        for one in both:
            one.logits.requires_grad_()
        return both

    first, second = views()
    expected = divergence(first, second) + divergence(second, first)
    expected.sum().backward()
    one, other = views()
    found = divergence_both_ways(one, other)
    found.sum().backward()
    assert_close(found, expected, atol=2e-6, rtol=1e-5)
    for a, b in ((one, first), (other, second)):
        assert_close(a.logits.grad, b.logits.grad, atol=1e-6, rtol=0)


@KINDS
def test_a_shift_of_logits_gives_what_it_should(background: int | None) -> None:
    """z + a of the one class and z: (sigmoid(z + a) - sigmoid(z)) a; of two classes, too."""
    logits = torch.tensor([[[0.3, -1.0]]])
    shifted = logits + torch.tensor([0.0, 2.0])
    one, other = (Predictions(x, torch.zeros(1, 1, 4), background) for x in (logits, shifted))
    z = -1.0 if background is None else -1.3  # of two classes the difference counts
    expected = 2 * (1 / (1 + math.exp(-z - 2)) - 1 / (1 + math.exp(-z)))
    assert divergence_both_ways(one, other).item() == pytest.approx(expected, rel=1e-6)


@KINDS
def test_what_is_alike_has_no_loss_and_no_gradient(background: int | None) -> None:
    target, predicted = predictions(background), predictions(background)
    predicted.logits.requires_grad_()
    predicted.boxes.requires_grad_()
    kl, boxes = divergence(target, predicted), distance(target, predicted, squared=True)
    boxes = boxes + distance(target, predicted, squared=False)
    kl = kl + divergence_both_ways(target, predicted)
    assert not kl.detach().any() and not boxes.detach().any()
    (kl + boxes).sum().backward()
    assert predicted.logits.grad is not None and predicted.boxes.grad is not None
    assert not predicted.logits.grad.any() and not predicted.boxes.grad.any()


def test_extreme_logits_have_numbers() -> None:
    logits = torch.tensor([[[100.0, -100.0], [-100.0, 100.0], [0.0, 0.0]]])
    for background in (None, 0):
        one = Predictions(logits, torch.zeros(1, 3, 4), background)
        other = Predictions(logits.flip(2).requires_grad_(), torch.zeros(1, 3, 4), background)
        kl = divergence(one, other)
        kl.sum().backward()
        assert kl[0, 2] == 0 and (kl[0, :2] > 100).all() and kl.isfinite().all()
        assert other.logits.grad is not None and other.logits.grad.isfinite().all()


def test_boxes_of_every_class_count_as_their_mean() -> None:
    boxes = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    one = Predictions(torch.zeros(1, 2, 4), boxes, 0)
    other = Predictions(torch.zeros(1, 2, 4), boxes + torch.tensor([3.0, 0, 4, 0]), 0)
    assert_close(distance(one, other, squared=False), torch.full((1, 2), 5.0))
    assert_close(distance(one, other, squared=True), torch.full((1, 2), 25 / 4))
    other.boxes[:, :, 1:] = boxes[:, :, 1:]
    assert_close(distance(one, other, squared=False), torch.full((1, 2), 5 / 3))
    assert_close(distance(one, other, squared=True), torch.full((1, 2), 25 / 12))


def target_of(probabilities: list[list[float]], background: int | None) -> Predictions:
    p = torch.tensor([probabilities])
    logits = p.logit() if background is None else p.log()
    return Predictions(logits, torch.zeros(1, len(probabilities), 4), background)


def test_hard_labels_are_of_what_is_sure() -> None:
    sigmoid = target_of([[0.8, 0.75], [0.69, 0.1], [0.2, 0.9]], None)
    assert hardened(sigmoid, 0.7).tolist() == [[[1, 1], [0, 0], [0, 1]]]
    softmax = [[0.05, 0.8, 0.15], [0.2, 0.6, 0.2], [0.9, 0.05, 0.05]]
    found = hardened(target_of(softmax, 0), 0.7)
    assert found.tolist() == [[[0, 1, 0], [1, 0, 0], [1, 0, 0]]]
    last = hardened(target_of([x[::-1] for x in softmax], -1), 0.7)
    assert torch.equal(last, found.flip(2))


def test_the_loss_of_a_hard_label_is_its_surprise() -> None:
    predicted = target_of([[0.2, 0.5, 0.3]], 0)
    assert cross_entropy(predicted, torch.tensor([[[0.0, 1, 0]]])).item() == pytest.approx(
        -math.log(0.5)
    )


def none(shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(shape, requires_grad=True)


@KINDS
def test_nothing_to_compare_is_no_fault(background: int | None) -> None:
    one, other = (Predictions(none((2, 0, 4)), none((2, 0, 4)), background) for _ in range(2))
    loss = divergence(one, other).sum() + distance(one, other, squared=True).sum()
    loss.backward()
    assert loss == 0 and other.logits.grad is not None
    assert hardened(one, 0.7).shape == (2, 0, 4)
