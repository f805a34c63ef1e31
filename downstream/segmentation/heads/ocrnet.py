"""OCRNet: object-contextual representations (Yuan et al. 2020, ECCV, arXiv 1909.11065).

A pixel is classified with what the image as a whole says of the classes it may belong to: a first,
auxiliary classification weighs the pixels of each class into one vector (its object region), and
attention of the pixel over those vectors is its context.

Written after the paper; constants and details as openseg.pytorch `spatial_ocr_block.py` and
HRNet-Semantic-Segmentation `seg_hrnet_ocr.py` (both MIT, Microsoft) and PaddleSeg `ocrnet.py`
(Apache-2.0), with which SSLD's table 9 was made.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from downstream.backbone.backbone import Backbone
from downstream.segmentation.heads.segmenter import (
    Segmenter,
    concatenated,
    conv_bn_relu,
    initialise,
)

MID_CHANNELS = 512
"""Of pixels, regions and context (PaddleSeg `ocr_mid_channels`, HRNet `OCR.MID_CHANNELS`)."""
KEY_CHANNELS = 256
"""Of queries, keys and values (PaddleSeg `ocr_key_channels`, HRNet `OCR.KEY_CHANNELS`)."""
AUX_WEIGHT = 0.4
"""Of the loss on the object regions (`coef` of PaddleSeg's OCRNet configurations)."""
DROPOUT = 0.1
"""Of whole channels after the bottleneck (PaddleSeg `SpatialOCRModule`; HRNet's code has .05)."""


class OCRNet(Segmenter):
    """OCR on all maps of the backbone, or on its only one.

    Args:
        backbone: several maps of growing stride (HRNet: 4, 8, 16, 32), which are concatenated at
            the first one's size; or one map. Pixels and object regions both come from it
            (PaddleSeg: one value of `backbone_indices`).
        num_classes: of the masks.
    """

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        head = OCRHead(sum(backbone.channels), num_classes)
        super().__init__(backbone, head, num_classes, aux_weight=AUX_WEIGHT)


class OCRHead(nn.Module):
    """Maps -> logits, and in training mode the object regions' own logits."""

    def __init__(
        self,
        channels: int,
        num_classes: int,
        mid_channels: int = MID_CHANNELS,
        key_channels: int = KEY_CHANNELS,
    ) -> None:
        super().__init__()
        self.regions = nn.Sequential(
            conv_bn_relu(channels, channels), nn.Conv2d(channels, num_classes, 1)
        )
        self.pixels = conv_bn_relu(channels, mid_channels, 3)
        self.attention = ObjectAttention(mid_channels, key_channels)
        self.bottleneck = nn.Sequential(
            conv_bn_relu(2 * mid_channels, mid_channels), nn.Dropout2d(DROPOUT)
        )
        self.classifier = nn.Conv2d(mid_channels, num_classes, 1)
        initialise(self)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        features = concatenated(maps)
        regions, pixels = self.regions(features), self.pixels(features)
        context = self.attention(pixels, gather(pixels, regions))
        logits = self.classifier(self.bottleneck(torch.cat([context, pixels], 1)))
        return [logits, regions] if self.training else [logits]


def gather(pixels: Tensor, regions: Tensor) -> Tensor:
    """Object region representations: for each class the mean of all pixels, weighted by a softmax
    of the class's logits **over the pixels** (openseg `SpatialGather_Module`, the paper's spatial
    softmax; some versions of HRNet's copy take it over the classes).

    Args:
        pixels: float [b, c, h, w].
        regions: logits, float [b, classes, h, w].

    Returns:
        float [b, c, classes, 1].
    """
    weights = regions.flatten(2).softmax(-1)  # [b, classes, h w]
    return (pixels.flatten(2) @ weights.transpose(1, 2)).unsqueeze(-1)


class ObjectAttention(nn.Module):
    """Context of each pixel: attention over the object regions (`_ObjectAttentionBlock` of openseg
    at scale 1, where no pixel is pooled away).

    The weight of a region is a softmax over regions of <query(pixel), key(region)> / sqrt(key
    channels), and what it weighs is value(region). Queries and keys are two 1x1 convolutions with
    batch norm and ReLU each, values and the way back one.

    Args:
        channels: of pixels, regions and context.
        key_channels: of queries, keys and values.
    """

    def __init__(self, channels: int, key_channels: int) -> None:
        super().__init__()
        self.query = nn.Sequential(
            conv_bn_relu(channels, key_channels), conv_bn_relu(key_channels, key_channels)
        )
        self.key = nn.Sequential(
            conv_bn_relu(channels, key_channels), conv_bn_relu(key_channels, key_channels)
        )
        self.value = conv_bn_relu(channels, key_channels)
        self.up = conv_bn_relu(key_channels, channels)

    def forward(self, pixels: Tensor, regions: Tensor) -> Tensor:
        """[b, c, h, w] and [b, c, classes, 1] -> context, float [b, c, h, w]."""
        query, key, value = (
            part.flatten(2).transpose(1, 2)[:, None]  # [b, 1, h w or classes, key channels]
            for part in (self.query(pixels), self.key(regions), self.value(regions))
        )  # one head: the ONNX exporter knows of no attention without heads
        context = F.scaled_dot_product_attention(query, key, value)[:, 0]  # [b, h w, key channels]
        return self.up(context.transpose(1, 2).unflatten(2, pixels.shape[-2:]))
