"""Weights by histogram: known ones, a loop in float64, one process and two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from downstream.sed.reweighting import even, harmonised, weighted


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, gradients and what is counted, [4, 50]: mostly small gradients, as of background."""
    generator = torch.Generator().manual_seed(seed)
    g = torch.rand(4, 50, generator=generator, dtype=torch.float64) ** 4
    # In the middles of 20 bins: rounding moves none into another.
    g = ((g * 20).floor() + 0.5) / 20
    losses = torch.rand(4, 50, generator=generator)
    return losses, g.float(), torch.rand(4, 50, generator=generator) < 0.7


def test_a_known_histogram_gives_the_known_weights() -> None:
    g = torch.tensor([[0.05, 0.01, 0.09, 0.55], [0.08, 0.59, 1.0, 0.95]])
    counted = torch.tensor([[True] * 4, [True, True, True, False]])
    found = harmonised(g, counted, 10, training=True)
    expected = torch.tensor([[1 / 4, 1 / 4, 1 / 4, 1 / 2], [1 / 4, 1 / 2, 1, 0]]) / 10
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("bins", [1, 20])
def test_the_loss_is_what_a_loop_finds(bins: int) -> None:
    """Equation 5."""
    losses, g, counted = batch()
    at = lambda i, j: min(int(g[i, j].double() * bins), bins - 1)  # noqa: E731
    places = [(i, j) for i in range(4) for j in range(50) if counted[i, j]]
    sizes = Counter(at(i, j) for i, j in places)
    expected = sum(losses[i, j].double().item() / sizes[at(i, j)] for i, j in places) / bins
    found = weighted(losses, harmonised(g, counted, bins, training=True), True)
    assert found.shape == (4,)
    assert found.mean().item() == pytest.approx(expected, rel=1e-5)
    assert len(sizes) > bins / 2


def test_without_it_the_loss_is_the_mean() -> None:
    losses, _, counted = batch()
    found = weighted(losses, even(counted, training=True), True).mean()
    torch.testing.assert_close(found, losses[counted].mean())


def test_every_bin_weighs_the_same_however_many_are_in_it() -> None:
    """100 sure ones and one that is not have the same share of the loss."""
    g = torch.tensor([[0.01] * 100 + [0.99]])
    weights = harmonised(g, torch.ones(1, 101, dtype=torch.bool), 30, training=True)
    torch.testing.assert_close(weights[:, :100].sum(), weights[0, 100])


@pytest.mark.parametrize(
    "weigh", [lambda g, counted: harmonised(g, counted, 20, True), lambda _, c: even(c, True)]
)
def test_two_processes_have_the_losses_of_one(
    weigh: Callable[[Tensor, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, g, counted = batch()
    g[3, 0], counted[3] = 0.975, False
    counted[3, 0] = True  # a bin that one process has nothing in, and a process with little
    counted[2] = False
    expected = weighted(losses, weigh(g, counted), False)
    counts: list[Tensor] = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    found = []
    parts = (slice(0, 1), slice(1, 4))  # one of them could not read as many images
    for mine, other in (parts, parts[::-1]):
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: counts.append(x.clone()))
        weighted(losses[other], weigh(g[other], counted[other]), True)
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda x: x.add_(counts.pop(0)))
        found.append(weighted(losses[mine], weigh(g[mine], counted[mine]), True))
        assert not counts
    torch.testing.assert_close(torch.cat(found), expected)


def test_what_is_not_counted_does_not_matter() -> None:
    losses, g, counted = batch()
    found = weighted(losses, harmonised(g, counted, 20, True), True)
    others = torch.where(counted, g, 1 - g)
    again = weighted(torch.where(counted, losses, 7.0), harmonised(others, counted, 20, True), True)
    assert torch.equal(found, again)


def test_nothing_weighs_nothing() -> None:
    losses, g, counted = batch()
    for weights in (even(counted & False, True), harmonised(g, counted & False, 20, True)):
        assert not weighted(losses, weights, True).any()
    weights = harmonised(g[:, :0], counted[:, :0], 20, True)
    assert weighted(losses[:, :0], weights, True).tolist() == [0] * 4


def test_what_is_no_number_stays_none_and_stops_nothing() -> None:
    losses, g, counted = batch()
    losses[0, 0] = g[0, 0] = torch.nan
    counted[0, 0] = True
    found = weighted(losses, harmonised(g, counted, 20, True), True)
    assert found.isnan().tolist() == [True, False, False, False]
