"""DETR's queries matched between two views."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from downstream.sed.predictions import Predictions, distance, divergence
from downstream.sed.queries import jensen_shannon, matched_pair, matching


def view(seed: int, queries: int = 5, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    boxes = 0.2 + 0.4 * torch.rand(2, queries, 4, generator=generator)
    return 2 * torch.randn(2, queries, classes + 1, generator=generator), boxes


def naive_js(p: list[float], q: list[float]) -> float:
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    kl = [sum(a * math.log(a / m) for a, m in zip(x, middle, strict=True)) for x in (p, q)]
    return sum(kl) / 2


def naive_giou(a: list[float], b: list[float]) -> float:
    corners = [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in (a, b)]
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = corners
    width, height = min(ax2, bx2) - max(ax1, bx1), min(ay2, by2) - max(ay1, by1)
    overlap = max(0.0, width) * max(0.0, height)
    union = a[2] * a[3] + b[2] * b[3] - overlap
    hull = (max(ax2, bx2) - min(ax1, bx1)) * (max(ay2, by2) - min(ay1, by1))
    return overlap / union - (hull - union) / hull


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_the_matching_is_the_best_of_all(weight: float) -> None:
    first, second = view(0), view(1)
    found = matching(Predictions(*first, -1), Predictions(*second, -1), weight)
    for i in range(2):
        p, q = (x[0][i].double().softmax(-1).tolist() for x in (first, second))
        a, b = (x[1][i].tolist() for x in (first, second))
        cost = [
            [naive_js(p[j], q[k]) + weight * (1 - naive_giou(a[j], b[k])) for k in range(5)]
            for j in range(5)
        ]
        orders = list(itertools.permutations(range(5)))
        totals = [sum(cost[j][k] for j, k in enumerate(order)) for order in orders]
        assert found[i].tolist() == list(orders[totals.index(min(totals))])


def test_jensen_shannon_is_what_a_loop_finds() -> None:
    p, q = (view(seed)[0].softmax(-1) for seed in (0, 1))
    found = jensen_shannon(p, q[:, :3])
    assert found.shape == (2, 5, 3)
    for i, j, k in itertools.product(range(2), range(5), range(3)):
        expected = naive_js(p[i, j].tolist(), q[i, k].tolist())
        assert found[i, j, k].item() == pytest.approx(expected, abs=1e-6)


def test_queries_in_another_order_are_the_same() -> None:
    first = view(0, queries=20)
    order = torch.stack(
        [torch.randperm(20, generator=torch.Generator().manual_seed(i)) for i in (1, 2)]
    )
    rows = torch.arange(2).unsqueeze(1)
    second = tuple(x[rows, order] for x in first)
    found = matching(Predictions(*first, -1), Predictions(second[0], second[1], -1), 1.0)
    assert torch.equal(found, order.argsort(1))  # the inverse of what was done
    pair = matched_pair(first, (second[0], second[1]), 1.0)
    assert not divergence(pair.first, pair.second).any() and pair.counted.all()
    assert not distance(pair.first, pair.second, squared=False).any()


def test_the_losses_reach_the_query_that_was_matched() -> None:
    first = view(0)
    logits = first[0].flip(1).clone().requires_grad_()
    boxes = first[1].flip(1).clone()
    boxes[:, 4, 0] += 0.01  # the partner of query 0
    boxes.requires_grad_()
    pair = matched_pair(first, (logits, boxes), 1.0)
    apart = distance(pair.first, pair.second, squared=False)
    torch.testing.assert_close(apart[:, 0], torch.full((2,), 0.01), atol=1e-6, rtol=0)
    apart.sum().backward()
    assert boxes.grad is not None and boxes.grad[:, 4, 0].tolist() == [1, 1]
    assert not boxes.grad[:, :4].any()


def test_what_is_no_number_stops_nothing() -> None:
    first, second = view(0), view(1)
    second[0][0, 0, 0] = second[1][1, 2, 1] = torch.nan
    pair = matched_pair(first, second, 1.0)
    assert divergence(pair.first, pair.second).isnan().any(1).tolist() == [True, False]
    assert distance(pair.first, pair.second, squared=False).isnan().any(1).tolist() == [False, True]
