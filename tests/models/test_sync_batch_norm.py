"""Synchronised batch norm where a network is prepared more than once."""

from __future__ import annotations

import timm
import torch
from timm.layers.norm_act import SyncBatchNormAct

from ssld.models.sync_batch_norm import synchronise


def test_a_network_that_comes_twice_keeps_its_activations():
    """As a teacher of several students does; timm's own conversion would drop them."""
    model = timm.create_model("test_efficientnet")
    once = synchronise(model, torch.device("cuda"))  # the modules alone; nothing runs
    kept = [m for m in once.modules() if isinstance(m, SyncBatchNormAct)]
    twice = synchronise(once, torch.device("cuda"))
    assert kept and [m for m in twice.modules() if isinstance(m, SyncBatchNormAct)] == kept
