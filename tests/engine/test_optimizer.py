"""Learning rates over a run and over parameters, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ssld.engine.config import EmaConfig, LoopConfig, OptimizerConfig, ScheduleConfig
from ssld.engine.optimizer import (
    average_decay,
    build_optimizer,
    learning_rate,
    parameter_groups,
)


def rates(schedule: ScheduleConfig, steps: int = 120, per_epoch: float = 10.0) -> list[float]:
    return [
        learning_rate(
            schedule, step, total_steps=steps, steps_per_epoch=per_epoch, batch_size=512
        )
        for step in range(steps)
    ]  # fmt: skip


def test_steps_of_a_tenth_after_their_epochs() -> None:
    found = rates(ScheduleConfig(lr=0.5, warmup_epochs=0, decay="step", milestones=[8, 11]))
    assert found == pytest.approx([1.0] * 80 + [0.1] * 30 + [0.01] * 10)


def test_the_polynomial_of_deeplab() -> None:
    found = rates(ScheduleConfig(lr=0.5, warmup_epochs=0, decay="poly"))
    assert found == pytest.approx([(1 - step / 120) ** 0.9 for step in range(120)])


@pytest.mark.parametrize("decay", ["cosine", "step", "poly"])
def test_the_warm_up_is_a_line_from_near_0(decay) -> None:
    milestones = [8.0] if decay == "step" else []
    found = rates(ScheduleConfig(lr=0.5, warmup_epochs=1, decay=decay, milestones=milestones))
    assert found[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert found[10] == pytest.approx(1.0)
    assert all(math.isfinite(rate) and 0 <= rate <= 1 for rate in found)


@pytest.mark.parametrize(
    "wrong",
    [{"decay": "step"}, {"decay": "cosine", "milestones": [3.0]}],
)
def test_milestones_belong_to_steps(wrong) -> None:
    with pytest.raises(ValueError, match="schedule.decay is .* give milestones with `decay: step`"):
        ScheduleConfig(**wrong)


def decays(ema: EmaConfig, schedule: ScheduleConfig) -> list[float]:
    return [
        average_decay(ema, schedule, step, total_steps=120, steps_per_epoch=10.0)
        for step in range(120)
    ]  # fmt: skip


STEP = ScheduleConfig(decay="step", milestones=[8, 11])


def test_the_decay_of_the_average_falls_with_the_rate_or_along_a_cosine() -> None:
    assert decays(EmaConfig(0.99), STEP) == [0.99] * 120
    falls = [0.99] * 80 + [0.9] * 40  # at the first milestone alone
    assert decays(EmaConfig(0.99, "step"), STEP) == falls
    assert decays(EmaConfig(0.99, "auto"), STEP) == falls
    shares = ScheduleConfig(decay="step", milestone_shares=[0.9, 0.7])
    assert decays(EmaConfig(0.99, "step", 0.5), shares) == [0.99] * 84 + [0.5] * 36
    cosine = [0.9 + 0.096 * (1 + math.cos(math.pi * step / 120)) / 2 for step in range(120)]
    assert decays(EmaConfig(0.996, "cosine"), STEP) == pytest.approx(cosine)
    assert decays(EmaConfig(0.996, "auto"), ScheduleConfig()) == pytest.approx(cosine)
    with pytest.raises(ValueError, match="ema.schedule is step, but schedule.decay is cosine"):
        LoopConfig(out="run", steps=1, ema=EmaConfig(0.99, "step"))
    with pytest.raises(ValueError, match="ema.schedule is cosine, but ema.decay is 0"):
        LoopConfig(out="run", steps=1, ema=EmaConfig(schedule="cosine"))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.norm, self.head = nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 3)

    def lr_scales(self) -> dict[str, float]:
        return {"trunk.weight": 0.1, "trunk.bias": 0.1}


def grouped(config: OptimizerConfig) -> dict[str, tuple[float, float]]:
    """{parameter name: (weight decay, factor on the rate)}."""
    model = Scaled()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, config)
    found = {
        names[id(p)]: (group["weight_decay"], group["lr_scale"])
        for group in groups
        for p in group["params"]
    }
    assert found.keys() == dict(model.named_parameters()).keys()
    return found


def test_factors_of_stages_and_of_biases_multiply() -> None:
    found = grouped(OptimizerConfig(weight_decay=0.5, bias_lr=2.0, no_decay="bias"))
    assert found == {
        "trunk.weight": (0.5, 0.1), "trunk.bias": (0.0, 0.2), "norm.weight": (0.5, 1.0),
        "norm.bias": (0.0, 2.0), "head.weight": (0.5, 1.0), "head.bias": (0.0, 2.0),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("no_decay", "exempt"),
    [
        ("none", set()),
        ("norm", {"norm.weight", "norm.bias"}),
        ("bias", {"trunk.bias", "norm.bias", "head.bias"}),
        ("norm_and_bias", {"trunk.bias", "norm.weight", "norm.bias", "head.bias"}),
    ],
)
def test_what_is_exempt_from_decay(no_decay, exempt) -> None:
    found = grouped(OptimizerConfig(weight_decay=0.5, no_decay=no_decay))
    assert {name for name, (decay, _) in found.items() if decay == 0} == exempt


def test_a_scaled_parameter_moves_by_its_factor() -> None:
    model = Scaled()
    config = OptimizerConfig(momentum=0.0, weight_decay=0.0, args={})
    optimizer = build_optimizer(model, config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.5 * group["lr_scale"]
    optimizer.step()
    moved = {name: (before[name] - p).detach() for name, p in model.named_parameters()}
    for name, by in moved.items():
        expected = 0.05 if name.startswith("trunk") else 0.5
        assert torch.allclose(by, torch.full_like(by, expected)), name
