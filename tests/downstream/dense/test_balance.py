"""Loss normalisation against a loop in float64: L = (L_h + alpha (L_h mean / L_p mean) L_p) /
(1 + alpha), Zoph et al. 2020, appendix B."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from downstream.dense.balance import Balance

ALPHA, DECAY, SHARE, PASSES, STEPS = 3.0, 0.75, 0.5, 2, 7
Pass = tuple[list[float], list[bool], list[float]]
"""Losses, which are generated, weights."""


def made_up(step: int, images: int, kinds: str) -> list[Pass]:
    """The forward passes of a step; human losses fall, generated ones are small."""
    draw = torch.Generator().manual_seed(step)
    passes: list[Pass] = []
    for number in range(PASSES):
        apart = [number == 0] * images
        generated = (
            apart if kinds == "apart" else (torch.rand(images, generator=draw) < SHARE).tolist()
        )
        values = torch.rand(images, generator=draw).tolist()
        losses = [x / 9 if g else x * 0.8**step for x, g in zip(values, generated, strict=True)]
        passes.append((losses, generated, [1.0] * images))
    return passes


def mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def naive(steps: list[list[Pass]]) -> list[float]:
    """The factor of each step."""
    history: dict[bool, list[float]] = {False: [], True: []}
    factors = []
    for passes in steps:
        average = {}
        for kind, seen in history.items():
            moving = 0.0
            for x in seen:
                moving = DECAY * moving + (1 - DECAY) * x
            average[kind] = moving / (1 - DECAY ** len(seen)) if seen else 0.0
        known = average[False] > 0 and average[True] > 0
        factors.append(average[False] / average[True] if known else 1.0)
        for kind, seen in history.items():
            rows = [row for one in passes for row in zip(*one, strict=True)]
            of_step = mean([x for x, g, weight in rows if g == kind and weight])
            if of_step is not None and math.isfinite(of_step):
                seen.append(of_step)
    return factors


def objective(passes: list[Pass], factor: float) -> float:
    """L of a step, each kind in its share of the images."""
    count = sum(len(losses) for losses, *_ in passes)
    human, generated = (
        math.fsum(x for losses, g, w in passes for x, k, y in zip(losses, g, w, strict=True)
                  if k == kind and y)
        for kind in (False, True)
    )  # fmt: skip
    human, generated = human / (count * (1 - SHARE)), generated / (count * SHARE)
    return (human + ALPHA * factor * generated) / (1 + ALPHA)


def balance() -> Balance:
    return Balance(ALPHA, DECAY, share=SHARE, passes=PASSES)


def weighed(module: Balance, one: Pass) -> Tensor:
    losses, generated, weight = one
    rows = torch.tensor(losses), torch.tensor(weight), torch.tensor(generated)
    return module(*rows) * torch.tensor(losses)


def share(modules: list[Balance]) -> None:
    """As the engine does after each step; see `Trainer._share_buffers`."""
    for buffers in zip(*(module.buffers() for module in modules), strict=True):
        middle = torch.stack(buffers).mean(0)
        for buffer in buffers:
            buffer.copy_(middle)


def part(one: Pass, rank: int, world: int) -> Pass:
    losses, generated, weight = (x[rank::world] for x in one)
    return losses, generated, weight


STREAMS = {
    "mixed": [made_up(step, 6, "mixed") for step in range(STEPS)],
    "apart": [made_up(step, 6, "apart") for step in range(STEPS)],
    # Of the second process's images none is generated; in two steps nobody's is.
    "uneven": [
        [(losses, [False, i % 2 == 0 and step not in (0, 3)] * 3, weight)
         for i, (losses, _, weight) in enumerate(made_up(step, 6, "mixed"))]
        for step in range(STEPS)
    ],
    "unreadable": [
        [(losses, g, [float((step + i) % 3 > 0) for i in range(6)]) for losses, g, _ in passes]
        for step, passes in enumerate(made_up(step, 6, "apart") for step in range(STEPS))
    ],
}  # fmt: skip


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("stream", STREAMS)
def test_it_is_the_formula_on_any_number_of_processes(stream: str, world: int) -> None:
    steps, modules = STREAMS[stream], [balance() for _ in range(world)]
    factors = naive(steps)
    assert factors[0] == 1 and len(set(factors[1:])) > STEPS - 4
    for passes, factor in zip(steps, factors, strict=True):
        total = []
        for one in passes:
            weighted = [weighed(x, part(one, rank, world)) for rank, x in enumerate(modules)]
            assert all(float(x.factor) == pytest.approx(factor, rel=1e-6) for x in modules)
            total.append(float(torch.cat(weighted).double().mean()))
        assert sum(total) / PASSES == pytest.approx(objective(passes, factor), rel=1e-6)
        share(modules)
        assert all(torch.equal(a, b) for x in modules[1:] for a, b in
                   zip(modules[0].buffers(), x.buffers(), strict=True))  # fmt: skip


def test_a_resumed_one_goes_on_to_the_same_bits() -> None:
    whole, steps = balance(), STREAMS["mixed"]
    resumed = balance()
    for passes in steps:
        fresh = balance()  # killed after each step
        fresh.load_state_dict(resumed.state_dict())
        resumed = fresh
        for one in passes:
            assert torch.equal(weighed(whole, one), weighed(resumed, one))
    assert whole.averages[:, 1].tolist() == pytest.approx([1 - DECAY ** (STEPS - 1)] * 2)


def test_equal_losses_are_left_as_they_are() -> None:
    """With alpha as the share has it, every image weighs the same."""
    module = Balance(1.0, 0.9997, share=0.5, passes=1)
    for _ in range(3):
        weights = module(torch.full((4,), 0.3), torch.ones(4), torch.tensor([True, False] * 2))
        assert weights.tolist() == [1.0] * 4


@pytest.mark.parametrize(("human", "generated"), [(0.0, 0.7), (0.7, 0.0), (0.0, 0.0)])
def test_a_loss_that_was_always_0_has_no_scale(human: float, generated: float) -> None:
    module = Balance(1.0, 0.5, share=0.5, passes=1)
    for _ in range(3):
        weights = module(
            torch.tensor([human, generated]), torch.ones(2), torch.tensor([False, True])
        )
        assert weights.tolist() == [1.0, 1.0] and module.factor == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_does_not_stay_in_the_averages(bad: float) -> None:
    rows = [[(1.0, 0.5), (0.8, 0.4)], [(bad, 0.3), (0.6, 0.3)], [(0.5, 0.2), (0.5, 0.1)]]
    steps = [[([a, b], [False, True], [1.0, 1.0]) for a, b in passes] for passes in rows]
    module, factors = balance(), naive([*steps, steps[-1]])
    for passes, factor in zip(steps, factors, strict=False):
        for one in passes:
            weighed(module, one)
        assert float(module.factor) == pytest.approx(factor)
    weighed(module, steps[-1][0])
    assert float(module.factor) == pytest.approx(factors[-1])
    assert all(a != b for a, b in pairwise(factors))


def test_no_gradient_goes_through_the_weights() -> None:
    losses = torch.rand(4, requires_grad=True)
    weights = balance()(losses, torch.ones(4), torch.tensor([True, False] * 2))
    assert not weights.requires_grad
    (weights * losses).sum().backward()
    assert torch.equal(losses.grad, weights)
