"""A flipped bit anywhere in a checkpoint is found, or changes nothing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ssld.engine import checkpoint

FLIPS = 150
"""In each file."""
FILES = ["ema.safetensors", "manifest.json", "optimizer.pt", "state.json", "student.safetensors"]


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {name: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for name in ("student", "ema")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With the checkpoints of steps 1 and 2."""
    found, made = tmp_path_factory.mktemp("checkpoints"), networks()
    optimizer = torch.optim.AdamW(made["student"].parameters())
    made["student"](torch.ones(2, 3)).sum().backward()
    optimizer.step()
    for step in (1, 2):
        state = {"best": {"step": 1, "metric": "top1", "value": 0.5}}
        known = optimizer.state_dict()
        checkpoint.save(found, step, networks=made, optimizer=known, state=state, keep=3)
    return found


def content(path: Path) -> list[Any]:
    made = networks()
    optimizer, state = checkpoint.load(path, made)
    tensors = [t for name in sorted(made) for t in checkpoint.tensors(made[name]).values()]
    return [state, str(optimizer), [t.tolist() for t in tensors]]


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_found_or_harmless(folder, name):
    path = checkpoint.at(folder, 2)
    assert sorted(file.name for file in path.iterdir()) == FILES
    before, whole, draw = content(path), (path / name).read_bytes(), random.Random(name)
    found = 0
    for _ in range(FLIPS):
        bit, data = draw.randrange(8 * len(whole)), bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        (path / name).write_bytes(bytes(data))
        known = checkpoint.damage(path) is not None
        found += known
        assert known or content(path) == before, (bit // 8, bit % 8)
    (path / name).write_bytes(whole)
    assert checkpoint.damage(path) is None and content(path) == before
    assert found > 0.9 * FLIPS


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["cut", "empty", "gone", "longer", "zeros"])
def test_a_file_that_is_not_whole_is_found_and_the_one_before_is_taken(folder, name, harm, capsys):
    file = checkpoint.at(folder, 2) / name
    whole = file.read_bytes()
    made = {"cut": whole[:-1], "empty": b"", "longer": whole + b"\0", "zeros": bytes(len(whole))}
    file.unlink() if harm == "gone" else file.write_bytes(made[harm])
    try:
        assert checkpoint.latest(folder) == checkpoint.at(folder, 1)
        assert "step-00000002 is damaged" in capsys.readouterr().err
    finally:
        file.write_bytes(whole)
    assert checkpoint.latest(folder) == checkpoint.at(folder, 2)
