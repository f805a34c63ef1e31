"""Whether a training step has the memory that it needs, before it is killed for want of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from downstream.dense.config import DownstreamConfig
from downstream.dense.model import DenseModel
from ssld.common.memory import free_bytes
from ssld.models.teacher import autocast

OPTIMIZER = 3
"""Numbers for each weight besides: its gradient, and two averages of AdamW's."""


def warn_of_memory(
    config: DownstreamConfig, accelerator: Accelerator, network: DenseModel, size: tuple[int, int]
) -> None:
    """Say so where the images of a forward pass will hardly fit.

    Args:
        size: height and width in px of a usual training image.
    """
    if not accelerator.is_main_process:
        return
    images = torch.zeros(1, *size, 3, dtype=torch.uint8)
    with autocast(images.device, config.precision):
        each = held_bytes(network, lambda: network(images, torch.tensor([size])))
    count = config.batch_size // (config.accumulate * accelerator.num_processes)
    if accelerator.device.type == "cuda":
        free = torch.cuda.mem_get_info(accelerator.device)[0]
    else:  # processes share it, those of other machines aside
        free = free_bytes() // accelerator.num_processes
    weights = sum(x.nbytes for x in network.parameters() if x.requires_grad)
    free -= OPTIMIZER * weights
    if each * count > free:
        fit = max(0, free // each)
        accelerator.print(
            f"warning: {count} images of {size[1]} x {size[0]} px in a forward pass need about "
            f"{each * count / 2**30:.1f} GiB, and {max(0, free) / 2**30:.1f} GiB are free for each "
            f"process, in which {fit} fit: lower batch_size or augment's sizes, or raise "
            "accumulate, which takes the images of a step one part after the other"
        )


def held_bytes(network: nn.Module, call: Callable[[], Any]) -> int:
    """Bytes that a forward pass keeps for its backward pass, weights left out. The network is in
    eval mode, so that nothing of it changes; losses and their targets are left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    training = network.training
    network.eval()
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            call()
    finally:
        network.train(training)
    return sum(kept.values())
