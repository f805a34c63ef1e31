"""DeepLabv3+ (Chen et al. 2018, arXiv 1802.02611) on a backbone of output stride 8.

Constants as PaddleSeg's `deeplabv3p_resnet50_os8_cityscapes_1024x512_80k.yml` and `deeplab.py`
(Apache-2.0), with which SSLD's table 9 was made. Atrous pyramid and separable convolutions are
segmentation-models-pytorch's (BSD-3); its decoder as a whole does not fit: of the two 3x3
convolutions that paper and PaddleSeg have after the concatenation it has one before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from segmentation_models_pytorch.decoders.deeplabv3.decoder import ASPP, SeparableConv2d
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from downstream.backbone.backbone import Backbone
from downstream.segmentation.heads.segmenter import Segmenter, conv_bn_relu, resize

RATES = (12, 24, 36)
"""Of the pyramid beside its 1x1 convolution, for output stride 8 (arXiv 1706.05587, section 3.3:
6, 12, 18 are doubled)."""
CHANNELS = 256
"""Of pyramid and decoder (paper, table 2; PaddleSeg `aspp_out_channels`)."""
LOW_CHANNELS = 48
"""To which the map of stride 4 is reduced (paper, table 1)."""
DROPOUT = 0.1
"""After the pyramid (PaddleSeg `ASPPModule`)."""
MULTI_GRID = (1, 2, 4)
"""Dilations of the last stage's three blocks, in units of the stage's (arXiv 1706.05587, section
3.2.1)."""


class DeepLabV3Plus(Segmenter):
    """DeepLabv3+; the backbone's last stage gets its multi-grid where it is a ResNet's.

    Args:
        backbone: its first map (stride 4) goes to the decoder, its last (stride 8) to the pyramid.
        num_classes: of the masks.
    """

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        set_multi_grid(backbone)
        head = _Head(backbone.channels[0], backbone.channels[-1], num_classes)
        super().__init__(backbone, head, num_classes)


class _Head(nn.Module):
    def __init__(self, low: int, high: int, num_classes: int) -> None:
        super().__init__()
        self.pyramid = ASPP(high, CHANNELS, RATES, separable=True, dropout=DROPOUT)
        self.low = conv_bn_relu(low, LOW_CHANNELS)
        self.decoder = nn.Sequential(
            _separable(CHANNELS + LOW_CHANNELS), _separable(CHANNELS)
        )  # paper, table 2: two of 3x3 and 256
        self.classifier = nn.Conv2d(CHANNELS, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        low = self.low(maps[0])
        size = (int(low.shape[-2]), int(low.shape[-1]))
        high = resize(self.pyramid(maps[-1]), size)
        return [self.classifier(self.decoder(torch.cat([high, low], 1)))]


def _separable(inputs: int) -> nn.Sequential:
    return nn.Sequential(
        SeparableConv2d(inputs, CHANNELS, 3, padding=1, bias=False),
        nn.BatchNorm2d(CHANNELS),
        nn.ReLU(inplace=True),
    )


def set_multi_grid(backbone: nn.Module) -> bool:
    """Give the last stage of a dilated ResNet its multi-grid; weights stay as they are.

    The dilation of block i's 3x3 convolution becomes that of the stage times MULTI_GRID[i]: 4, 8
    and 16 at output stride 8, as PaddleSeg `resnet_vd.py` has it (timm's own are 2, 4 and 4).
    It is for last stages of one to three bottleneck blocks, which ResNet-50 to -200 have, their -D,
    -X and SE variants too. All other backbones keep their dilations: the papers are silent on them.

    Returns:
        Whether there was such a stage.
    """
    stages = [
        stage
        for stage in backbone.modules()
        if isinstance(stage, nn.Sequential)
        and all(isinstance(block, (BasicBlock, Bottleneck)) for block in stage)
        and len(stage)
    ]
    blocks = list(stages[-1]) if stages else []
    if not 1 <= len(blocks) <= len(MULTI_GRID) or not isinstance(blocks[-1], Bottleneck):
        return False
    unit = int(blocks[-1].dilation)
    if unit == 1:
        return False
    for block, factor in zip(blocks, MULTI_GRID, strict=False):
        convolution = cast(nn.Conv2d, block.conv2)
        convolution.dilation = convolution.padding = (unit * factor, unit * factor)
    return True
