"""Optimizer and learning rate. The rate is a function of the step: nothing to save."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.optim._optim_factory import create_optimizer_v2
from torch import nn

from ssld.config import OptimizerConfig, ScheduleConfig
from ssld.errors import InputError


def learning_rate(
    schedule: ScheduleConfig,
    step: int,
    *,
    total_steps: int,
    steps_per_epoch: float,
    batch_size: int,
) -> float:
    """Rate of step 0 <= `step` < `total_steps`: linear warm-up from 0, then a half cosine to 0.

    SSLD section 4.2; the peak is `lr * batch_size / 256` (Goyal et al. 2017, section 2.1).
    """
    peak = schedule.lr * batch_size / 256
    warmup = warmup_steps(schedule, total_steps, steps_per_epoch)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1.0, total_steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def warmup_steps(schedule: ScheduleConfig, total_steps: int, steps_per_epoch: float) -> float:
    """Length of the warm-up: what was asked for, at most a tenth of the run."""
    return min(schedule.warmup_epochs * steps_per_epoch, total_steps / 10)


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """A timm optimizer over parameters that decay and parameters that do not.

    Raises:
        InputError: a name or argument that timm does not know.
    """
    arguments: dict[str, Any] = dict(config.args)
    try:
        return create_optimizer_v2(
            parameter_groups(model, config),  # type: ignore[arg-type]
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
    """Split the parameters by `no_decay`; what is a norm follows from its module's class name."""
    exempt: set[nn.Parameter] = set()
    if config.no_decay != "none":
        for module in model.modules():
            if "Norm" in type(module).__name__:
                exempt.update(module.parameters(recurse=False))
    if config.no_decay == "norm_and_bias":
        exempt.update(p for name, p in model.named_parameters() if name.endswith("bias"))
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p not in exempt], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p in exempt], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
