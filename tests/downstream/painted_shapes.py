"""Four small pictures of known shapes, a backbone to learn them with."""

from __future__ import annotations

import math

import torch
from overfit import ap50
from torch import Tensor, nn

SIDE_PX = 64


class TinyBackbone(nn.Module):
    """A 3x3 convolution, batch norm and ReLU per halving, two from the third on; the interface of
    `downstream.backbone.backbone.Backbone` as far as detectors use it."""

    WIDTHS = {2: 8, 4: 16, 8: 24, 16: 32, 32: 48}

    def __init__(self, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.strides, self.channels = strides, tuple(self.WIDTHS[s] for s in strides)
        self.stages, before = nn.ModuleDict(), 3
        for stride, width in self.WIDTHS.items():
            layers: list[nn.Module] = []
            for i in range(2 if stride >= 8 else 1):
                layers += [nn.Conv2d(before, width, 3, 1 if i else 2, 1, bias=False)]
                layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                before = width
            self.stages[str(stride)] = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stride, stage in self.stages.items():
            x = stage(x)
            if int(stride) in self.strides:
                maps.append(x)
        return maps


def painted() -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Noise with red rectangles (class 0), green ellipses (1) and blue rectangles (2) on it, of
    which those of an image do not touch; the fourth image has none. -> float [4, 3, 64, 64]."""
    boxes = [
        [[4, 5, 31, 20, 0], [35, 31, 61, 59, 1], [7, 35, 23, 59, 2]],
        [[9, 11, 40, 51, 1], [45, 7, 60, 25, 0]],
        [[3, 26, 60, 58, 2], [8, 4, 22, 18, 1], [31, 3, 55, 19, 0]],
        [],
    ]
    generator = torch.Generator().manual_seed(0)
    images = 0.3 * torch.randn(4, 3, SIDE_PX, SIDE_PX, generator=generator)
    y, x = torch.meshgrid(torch.arange(SIDE_PX) + 0.5, torch.arange(SIDE_PX) + 0.5, indexing="ij")
    targets = []
    for image, shapes in zip(images, boxes, strict=True):
        for x1, y1, x2, y2, label in shapes:
            far = torch.stack([(2 * x - x1 - x2) / (x2 - x1), (2 * y - y1 - y2) / (y2 - y1)])
            inside = (far.square().sum(0) if label == 1 else far.abs().amax(0)) <= 1
            image[label][inside] += 2
        rows = torch.tensor(shapes, dtype=torch.float32).view(-1, 5)
        targets.append({"boxes": rows[:, :4], "labels": rows[:, 4].long()})
    return images, targets


def overfit(network: nn.Module, steps: int, lr: float) -> tuple[list[float], float]:
    """Train on the four images -> losses of the steps, AP50 on the same images afterwards."""
    images, targets = painted()
    sizes = torch.full((4, 2), SIDE_PX)
    optimizer = torch.optim.Adam(network.parameters(), lr)
    losses = []
    for step in range(steps):
        share = (step + 1) / steps
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, 10 * share) * (0.05 + 0.95 * math.cos(share * math.pi / 2))
        loss = sum(network.train()(images, sizes, targets).values()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        found = network.eval()(images, sizes)
    return losses, ap50(found, targets)
