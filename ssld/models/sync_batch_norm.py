"""Batch norm over all processes, so that 1 process with batch 2B and 2 with B agree.

On GPUs that is torch's SyncBatchNorm, which does not run on CPUs; there the same statistics are
computed with differentiable all-reduces (Ioffe & Szegedy 2015, algorithm 1, over the global batch).
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator

import torch
import torch.distributed as dist
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Sum(torch.autograd.Function):
    """Over all processes; so is its gradient. (torch's own is deprecated for a private one.)"""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return _Sum.forward(ctx, *gradients)


def synchronise(model: nn.Module, device: torch.device) -> nn.Module:
    """Make every batch norm of `model` use global statistics; returns the model to use."""
    gpu = device.type == "cuda"
    # A teacher of several students comes here once for each, and timm would take a synchronised
    # BatchNormAct2d for a plain one, and leave its activation out.
    if gpu and not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        model = convert_sync_batchnorm(model)
    for module in model.modules():
        # SyncBatchNorm keeps to its own process in eval mode, where a teacher always is.
        if isinstance(module, _BatchNorm) and (not gpu or module.running_mean is None):
            module.forward = types.MethodType(_forward, module)
    return model


@contextlib.contextmanager
def alone(*models: nn.Module) -> Iterator[None]:
    """Inside, batch norm takes this process's statistics and waits for no other process, which may
    have run out of memory on the way here."""
    norms = [m for model in models for m in model.modules() if isinstance(m, _BatchNorm)]
    before = [vars(module).get("forward") for module in norms]
    for module in norms:
        module.forward = types.MethodType(_own_statistics, module)
    try:
        yield
    finally:
        for module, forward in zip(norms, before, strict=True):
            del module.forward
            if forward is not None:
                module.forward = forward


def _own_statistics(self: _BatchNorm, x: Tensor) -> Tensor:
    if not isinstance(self, nn.SyncBatchNorm):
        return type(self).forward(self, x)
    return _activated(self, _BatchNorm.forward(self, x))


def _activated(norm: _BatchNorm, x: Tensor) -> Tensor:
    """What timm's BatchNormAct2d and SyncBatchNormAct do after the normalisation."""
    act, drop = getattr(norm, "act", None), getattr(norm, "drop", None)
    return act(drop(x)) if act is not None and drop is not None else x


def _forward(self: _BatchNorm, x: Tensor) -> Tensor:
    """As the module's own forward, with statistics over all processes; x is [b, c, ...]."""
    fixed = not self.training and self.running_mean is not None
    # An evaluation's last batches differ in number from process to process: one that waited for
    # all of them would wait for ever.
    if fixed or torch.is_inference_mode_enabled():
        return type(self).forward(self, x)
    dims = [0, *range(2, x.dim())]
    shape = [1, -1, *[1] * (x.dim() - 2)]
    values = x.double()  # sums over many pixels; float32 would lose the agreement that is the point
    total, squares = values.sum(dims), values.square().sum(dims)
    pixels = torch.full_like(total, x.numel() / x.shape[1])  # detectors' images differ in size
    total, squares, count = _Sum.apply(torch.stack([total, squares, pixels]))  # [c] each
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0)
    if self.training and self.running_mean is not None and self.running_var is not None:
        momentum = 0.1 if self.momentum is None else self.momentum
        with torch.no_grad():
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.float(), momentum)
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.running_var.lerp_(unbiased.float(), momentum)
    scale = (variance + self.eps).rsqrt().to(x.dtype).view(shape)
    x = (x - mean.to(x.dtype).view(shape)) * scale
    if self.weight is not None:
        x = x * self.weight.view(shape) + self.bias.view(shape)
    return _activated(self, x)
