"""Fully convolutional networks (Long et al. 2015, arXiv 1411.4038), as the two of SSLD's table 9.

On HRNetV2 the head is that of its authors (Wang et al. 2019, arXiv 1908.07919;
`last_layer` of HRNet/HRNet-Semantic-Segmentation, MIT): all four branches, concatenated, 1x1.
On a dilated ResNet-D it is torchvision's (BSD-3): 3x3 to a quarter of the channels, dropout .1,
1x1.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models.segmentation.fcn import FCNHead

from downstream.backbone.backbone import Backbone
from downstream.segmentation.heads.segmenter import (
    Segmenter,
    concatenated,
    conv_bn_relu,
    initialise,
)


class FCN(Segmenter):
    """FCN on all maps of the backbone, or on its only one.

    Args:
        backbone: several maps of growing stride (HRNet: 4, 8, 16, 32), which are concatenated at
            the first one's size; or one map (a dilated ResNet: 8).
        num_classes: of the masks.
    """

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        channels = sum(backbone.channels)
        several = len(backbone.channels) > 1
        head = _Concatenated(channels, num_classes) if several else _Deepest(channels, num_classes)
        super().__init__(backbone, head, num_classes)


class _Concatenated(nn.Module):
    """Concatenation -> 1x1 convolution, batch norm, ReLU -> 1x1; channels kept between."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.hidden = conv_bn_relu(channels, channels)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        initialise(self)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [self.classifier(self.hidden(concatenated(maps)))]


class _Deepest(nn.Module):
    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.layers = FCNHead(channels, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [self.layers(maps[-1])]
