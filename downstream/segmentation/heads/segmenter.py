"""What all segmentation networks share: a backbone, a head on its feature maps, logits as large as
the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from downstream.backbone.backbone import Backbone


class Segmenter(nn.Module):
    """Images in, one logit per class and pixel out.

    Args:
        backbone: its maps go to `head`, shallow to deep.
        head: maps -> logits at the size of a map, float [b, classes, h', w']: the main ones, and
            in training mode those of an auxiliary head after them, where there is one.
        num_classes: of the masks.
        aux_weight: of the auxiliary head's loss, 0 where there is none.
    """

    def __init__(
        self, backbone: Backbone, head: nn.Module, num_classes: int, aux_weight: float = 0.0
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.num_classes = num_classes
        self.aux_weight = aux_weight
        self.stride: int = max(backbone.strides)
        """The backbone sees heights and widths that are multiples of it."""

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits of normalised images.

        Other sizes than multiples of `stride` are padded at the bottom and the right with 0, the
        mean colour, and the logits there are cut off.

        Args:
            images: float [b, 3, h, w].

        Returns:
            float32 [b, classes, h, w]; in training mode (main, auxiliary), both of that shape,
            where there is an auxiliary head.
        """
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % self.stride, 0, -height % self.stride))
        size = (int(padded.shape[-2]), int(padded.shape[-1]))
        logits = [
            resize(x.float(), size)[..., :height, :width] for x in self.head(self.backbone(padded))
        ]
        return logits[0] if len(logits) == 1 else tuple(logits)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """float [b, c, h, w] -> [b, c, *size], bilinear, corners not aligned: PaddleSeg's
    `align_corners: False`, its setting for sizes that are even, as 1024 x 512."""
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def concatenated(maps: Sequence[Tensor]) -> Tensor:
    """The maps at the size of the first, one after the other: the representation of HRNetV2
    (Wang et al. 2019, arXiv 1908.07919, figure 4 b; PaddleSeg `backbones/hrnet.py`). A single map
    stays as it is.

    Args:
        maps: float [b, c_i, h_i, w_i].

    Returns:
        float [b, sum of c_i, h_0, w_0].
    """
    size = (int(maps[0].shape[-2]), int(maps[0].shape[-1]))
    return torch.cat([resize(x, size) for x in maps], 1)


def conv_bn_relu(inputs: int, outputs: int, size: int = 1) -> nn.Sequential:
    """Convolution of size x size that keeps height and width, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def initialise(head: nn.Module) -> None:
    """Convolutions from N(0, .001), as PaddleSeg's FCN and OCR heads (`init_weight` of
    paddleseg/models/fcn.py and ocrnet.py) and HRNet's own segmentation code begin."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.001)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
