"""What brings our detectors beside torchvision's whole models."""

from __future__ import annotations

from collections import OrderedDict

import torch
from overfit import pictures
from torch import Tensor, nn

SMALL_ANCHORS = (16, 32, 64, 128, 256)


def spread(network: nn.Module) -> nn.Module:
    """Scores that differ, as after some training."""
    for name, weight in network.named_parameters():
        if "cls_" in name and weight.dim() > 1:
            nn.init.normal_(weight, std=0.3)
        elif "head.conv" in name and weight.dim() > 1:
            nn.init.kaiming_normal_(weight)
    return network


def padded_batch() -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """Two images of 128 px, the second 96 x 112 with padding. torchvision's anchors have their
    true strides at multiples of 128 px only."""
    images, targets = pictures(128, count=2)
    targets[1]["boxes"] = targets[1]["boxes"] * 0.75
    images[1, :, 96:], images[1, :, :, 112:] = 0, 0
    return images, torch.tensor([[128, 128], [96, 112]]), targets


class Pyramid(nn.Module):
    """Our backbone and pyramid as torchvision takes them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.out_channels = 64
        self.parts = [network.backbone, network.pyramid]

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.parts[0](x)
        return self.parts[1](OrderedDict((str(i), m) for i, m in enumerate(maps)))
