"""What the tests of segmentation share: backbones of a few layers, pictures of coloured shapes."""

from __future__ import annotations

import torch
from torch import Tensor

from downstream.backbone.backbone import Backbone, open_backbone
from downstream.backbone.config import BackboneConfig
from downstream.segmentation.heads.nas_fpn import NASFPNHead
from downstream.segmentation.heads.ocrnet import AUX_WEIGHT, OCRHead
from downstream.segmentation.heads.segmenter import Segmenter


def random(name: str, **args) -> BackboneConfig:
    """A network with random weights."""
    return BackboneConfig(name=name, args=args, pretrained=False)


def hrnet() -> Backbone:
    """The four branches of a small HRNet: 16, 32, 64 and 128 channels."""
    torch.manual_seed(0)
    return open_backbone(random("hrnet_w18_small"))


def dilated(*strides: int, name: str = "test_resnet", **args) -> Backbone:
    """Maps of a small network whose last two stages have stride 8, by strides without dilation."""
    torch.manual_seed(0)
    return open_backbone(random(name, **args), strides=strides, output_stride=8)


def small() -> Backbone:
    """Maps of strides 4 to 32 of a few layers."""
    torch.manual_seed(0)
    return open_backbone(random("test_resnet"))


def narrow_nas_fpn(classes: int = 4) -> Segmenter:
    """An eighth of the channels, and NAS-FPN once."""
    torch.manual_seed(0)
    backbone = open_backbone(random("test_resnet"), strides=(8, 16, 32))
    return Segmenter(backbone, NASFPNHead(backbone.channels, classes, 32, 1), classes)


def narrow_ocrnet(backbone: Backbone, classes: int = 4) -> Segmenter:
    """A quarter of the head's channels."""
    head = OCRHead(sum(backbone.channels), classes, mid_channels=128, key_channels=64)
    return Segmenter(backbone, head, classes, aux_weight=AUX_WEIGHT)


def shapes(count: int = 4, side: int = 64) -> tuple[Tensor, Tensor]:
    """Noisy pictures float32 [count, 3, side, side] and masks uint8 [count, side, side]: ground 0,
    a bar 1, a square 2 and a disc 3, with a rim of 255 that does not count."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    masks = torch.zeros(count, side, side, dtype=torch.uint8)
    for i, mask in enumerate(masks):
        unit = side // 8
        mask[unit * (i % 3) + 2 : unit * (i % 3 + 2) + 2] = 1
        mask[4 * unit : 7 * unit, unit // 2 * (i + 1) : unit // 2 * (i + 1) + 3 * unit] = 2
        distance = (y - 5 * unit).square() + (x - 6 * unit + 4 * i).square()
        mask[distance < (2 * unit) ** 2] = 3
        mask[(distance >= (2 * unit) ** 2) & (distance < (2 * unit + 1) ** 2)] = 255
    colours = torch.tensor([[-1.0, 0, 0.5], [1, 0, 0], [0, 1, -1], [0, -1, 1]])
    index = torch.where(masks == 255, 0, masks).long()
    noise = 0.3 * torch.randn(count, 3, side, side, generator=generator)
    return colours[index].permute(0, 3, 1, 2) + noise, masks
