"""The all-MLP decoder of SegFormer (Xie et al. 2021, arXiv 2105.15203, section 3.2) on a backbone's
maps: each to the same number of channels and the size of the first, one convolution over all.

The decoder is segmentation-models-pytorch's (BSD-3; decoders/segformer/decoder.py). It has no
dropout before the classifier, which the authors' code has (.1).
"""

from __future__ import annotations

from collections.abc import Sequence

from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from torch import Tensor, nn

from downstream.backbone.backbone import Backbone
from downstream.segmentation.heads.segmenter import Segmenter

CHANNELS = 256
"""Of the decoder (paper, table 6: C of the smaller ones)."""


class SegFormer(Segmenter):
    """SegFormer's decoder on any backbone.

    Args:
        backbone: gives maps of strides 4, 8, 16 and 32.
        num_classes: of the masks.
    """

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__(backbone, _Head(backbone.channels, num_classes), num_classes)


class _Head(nn.Module):
    def __init__(self, in_channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        channels = [3, *in_channels]
        self.decoder = SegformerDecoder(channels, len(in_channels), CHANNELS)
        self.classifier = nn.Conv2d(CHANNELS, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        b, _, height, width = maps[0].shape
        image = maps[0].new_empty(b, 0, 4 * height, 4 * width)  # says the size of the result
        return [self.classifier(self.decoder([image, *maps]))]
