"""A step that will not fit is named before it is killed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from overfit import small_backbone
from torch import nn

from downstream.dense import memory
from downstream.dense.memory import held_bytes, warn_of_memory
from downstream.segmentation.model import SegmentationModel, build


def test_what_is_held_is_what_a_hand_counts():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    network[0].train()
    image = torch.randn(1, 3, 20, 30)
    # The image and what the first convolution gives, which the second one takes: once.
    assert held_bytes(network, lambda: network(image)) == 4 * 20 * 30 * (3 + 8)
    assert network.training


@pytest.fixture(scope="module")
def network() -> SegmentationModel:
    torch.manual_seed(0)
    return SegmentationModel(build("fcn", small_backbone("fcn"), 2), ["a", "b"]).train()


@pytest.mark.parametrize(("share", "warned"), [(0.9, True), (1.1, False)])
def test_a_batch_that_does_not_fit_is_named(network, monkeypatch, share, warned):
    size = (64, 96)
    images = torch.zeros(1, *size, 3, dtype=torch.uint8)
    each = held_bytes(network, lambda: network(images))
    state = {name: x.clone() for name, x in network.state_dict().items()}
    weights = sum(x.nbytes for x in network.parameters())
    monkeypatch.setattr(memory, "free_bytes", lambda: 2 * (3 * weights + int(8 * each * share)))
    said: list[str] = []
    accelerator: Any = SimpleNamespace(
        is_main_process=True, num_processes=2, device=torch.device("cpu"), print=said.append
    )
    config: Any = SimpleNamespace(batch_size=32, accumulate=2, precision="fp32")
    warn_of_memory(config, accelerator, network, size)
    assert bool(said) == warned
    if warned:
        assert "warning: 8 images of 96 x 64 px" in said[0] and "in which 7 fit" in said[0]
    assert all(torch.equal(x, state[name]) for name, x in network.state_dict().items())
