"""Optimizer, learning rate and the decay of the moving average. Both are functions of the step:
nothing to save."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import torch
from timm.optim._optim_factory import create_optimizer_v2
from torch import nn

from ssld.common.errors import InputError
from ssld.engine.config import EmaConfig, OptimizerConfig, ScheduleConfig


def learning_rate(
    schedule: ScheduleConfig,
    step: int,
    *,
    total_steps: int,
    steps_per_epoch: float,
    batch_size: int,
) -> float:
    """Rate of step 0 <= `step` < `total_steps`: linear warm-up from 0, then down as `decay` says.

    The cosine is SSLD's (section 4.2), steps of a tenth are the detectors' (Ren et al. 2015,
    section 3.1.3), the polynomial is DeepLab's (Chen et al. 2017, section 4.1); the peak is
    `lr * batch_size / 256` (Goyal et al. 2017, section 2.1).
    """
    peak = schedule.lr * batch_size / 256
    warmup = warmup_steps(schedule, total_steps, steps_per_epoch)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if schedule.decay == "step":
        drops = milestones(schedule, total_steps, steps_per_epoch)
        return peak * 0.1 ** sum(step >= drop for drop in drops)
    done = (step - warmup) / max(1.0, total_steps - warmup)
    if schedule.decay == "poly":
        return peak * (1 - done) ** 0.9
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def milestones(
    schedule: ScheduleConfig, total_steps: int, steps_per_epoch: float
) -> list[float | Fraction]:
    """The steps from which on the rate is a tenth of what it was."""
    # As they are written: .7 as a float is below seven tenths.
    shares = [Fraction(str(x)) * total_steps for x in schedule.milestone_shares]
    return [*(epoch * steps_per_epoch for epoch in schedule.milestones), *shares]


def average_decay(
    ema: EmaConfig,
    schedule: ScheduleConfig,
    step: int,
    *,
    total_steps: int,
    steps_per_epoch: float,
) -> float:
    """Share of the old average that step 0 <= `step` < `total_steps` keeps, timm's warm-up apart
    (Guo et al. 2022, Scale-Equivalent Distillation, section 4.3, "EMA Rate")."""
    drops = milestones(schedule, total_steps, steps_per_epoch)
    if ema.schedule == "constant":
        return ema.decay
    if ema.schedule == "step" or (ema.schedule == "auto" and drops):
        return ema.end_decay if step >= min(drops) else ema.decay
    left = 0.5 * (1 + math.cos(math.pi * step / total_steps))
    return ema.end_decay + (ema.decay - ema.end_decay) * left


def warmup_steps(schedule: ScheduleConfig, total_steps: int, steps_per_epoch: float) -> float:
    """Length of the warm-up: what was asked for, at most a tenth of the run."""
    return min(schedule.warmup_epochs * steps_per_epoch, total_steps / 10)


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """A timm optimizer over groups of parameters with one decay and one `lr_scale` each, the factor
    on the learning rate.

    Raises:
        InputError: a name or argument that timm does not know.
    """
    arguments: dict[str, Any] = dict(config.args)
    try:
        return create_optimizer_v2(
            parameter_groups(model, config),
            opt=config.name,
            lr=0.0,  # set before every step
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            **arguments,
        )
    except (ValueError, TypeError, AssertionError, ImportError) as error:
        raise InputError(
            f"optimizer.name {config.name!r} cannot be built ({' '.join(str(error).split())}); "
            "see timm.optim.list_optimizers()"
        ) from error


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Split the parameters by `no_decay`, `bias_lr` and the model's own `lr_scales`, {parameter
    name: factor}, where it has one; what is a norm follows from its module's class name."""
    exempt: set[nn.Parameter] = set()
    if config.no_decay.startswith("norm"):
        for module in model.modules():
            if "Norm" in type(module).__name__:
                exempt.update(module.parameters(recurse=False))
    if config.no_decay.endswith("bias"):
        exempt.update(p for name, p in model.named_parameters() if name.endswith("bias"))
    scales: dict[str, float] = getattr(model, "lr_scales", dict)()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if parameter in exempt else config.weight_decay
            scale = scales.get(name, 1.0) * (config.bias_lr if name.endswith("bias") else 1.0)
            groups.setdefault((decay, scale), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), parameters in sorted(groups.items(), key=lambda x: (-x[0][0], -x[0][1]))
    ]
