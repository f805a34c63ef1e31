"""U-Net (Ronneberger et al. 2015, arXiv 1505.04597) on a backbone's maps.

The decoder is segmentation-models-pytorch's (BSD-3; decoders/unet/decoder.py): from the deepest map
on twice as large, beside the next map, two 3x3 convolutions with batch norm. *Deviation*: it ends
at stride 2, as few backbones of today have a map of that stride, and none that is larger.
"""

from __future__ import annotations

from collections.abc import Sequence

from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn

from downstream.backbone.backbone import Backbone
from downstream.segmentation.heads.segmenter import Segmenter

CHANNELS = (256, 128, 64, 32)
"""Of the maps of strides 16, 8, 4 and 2 (segmentation-models-pytorch, `decoder_channels`)."""


class UNet(Segmenter):
    """U-Net on any backbone.

    Args:
        backbone: gives maps of strides 4, 8, 16 and 32.
        num_classes: of the masks.
    """

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__(backbone, _Head(backbone.channels, num_classes), num_classes)


class _Head(nn.Module):
    def __init__(self, in_channels: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.decoder = UnetDecoder([0, *in_channels], CHANNELS, n_blocks=len(CHANNELS))
        self.classifier = nn.Conv2d(CHANNELS[-1], num_classes, 3, padding=1)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        b, _, height, width = maps[0].shape
        largest = maps[0].new_empty(b, 0, 2 * height, 2 * width)  # says the size of the last block
        return [self.classifier(self.decoder([largest, *maps]))]
