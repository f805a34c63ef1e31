"""What makes two processes with half of a batch each the training of one with all of it: images
are padded to the largest of the whole batch, and losses divided by what is in the whole batch.

The references do neither; on one process nothing differs from them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def mean_count(count: Tensor, training: bool) -> Tensor:
    """The mean over the processes of a number, float32 [], in training. In eval mode it stays: then
    the processes need not have as many batches."""
    count = count.detach().float()
    if training and torch.distributed.is_initialized():
        count = count.clone()
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return count


def rescale(count: Tensor, training: bool, least: float = 1.0) -> Tensor:
    """By what to multiply a loss that was divided by `count` (`least` at least) to have it divided
    by the mean over the processes; 1 with one process."""
    return count.detach().float().clamp(min=least) / mean_count(count, training).clamp(min=least)


def pad_to_largest(images: Tensor) -> Tensor:
    """uint8 [b, h, w, 3] -> [b, H, W, 3] of the highest and the widest batch of all processes:
    statistics of batch norm and what is seen at the border depend on the padding."""
    if not torch.distributed.is_initialized():
        return images
    largest = torch.tensor(images.shape[1:3], device=images.device)
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
    height, width = largest.tolist()
    return F.pad(images, (0, 0, 0, width - images.shape[2], 0, height - images.shape[1]))
