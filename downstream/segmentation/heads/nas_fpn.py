"""The segmenter of Rethinking Pre-training and Self-training (Zoph et al. 2020,
https://arxiv.org/abs/2006.06882, section 3.2): NAS-FPN seven times with separable convolutions, P3
to P7 enlarged to P2 and summed, three 3x3 convolutions, 1x1.

Constants as tensorflow/tpu models/official/detection/projects/self_training/configs/
pascal_seg_efficientnet-b7-nasfpn.yaml, modeling/architecture/nn_ops.py `pyramid_feature_fusion` and
heads.py `SegmentationHead` (Apache-2.0). The paper trains against masks at the size of the logits,
a quarter of the image's (`use_groundtruth_dimension: false`); here, as for all segmenters, logits
are enlarged to the image.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from downstream.backbone.backbone import Backbone
from downstream.dense.nas_fpn import NASFPN, enlarged
from downstream.segmentation.heads.segmenter import Segmenter, conv_bn_relu

CHANNELS = 256
"""Of pyramid and head (segmentation_config.py `fpn_feat_dims`)."""
REPEATS = 7
CONVS = 3


class NASFPNSegmenter(Segmenter):
    """NAS-FPN on any backbone.

    Args:
        backbone: gives maps of strides 8, 16 and 32.
        num_classes: of the masks.
    """

    def __init__(self, backbone: Backbone, num_classes: int) -> None:
        super().__init__(backbone, NASFPNHead(backbone.channels, num_classes), num_classes)


class NASFPNHead(nn.Module):
    """Maps of strides 8, 16 and 32 -> logits at stride 4."""

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = CHANNELS,
        repeats: int = REPEATS,
    ) -> None:
        super().__init__()
        self.pyramid = NASFPN(in_channels, channels, repeats, separable=True)
        self.layers = nn.Sequential(*(conv_bn_relu(channels, channels, 3) for _ in range(CONVS)))
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        for module in (*self.layers.modules(), self.classifier):
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)  # heads.py
        nn.init.zeros_(self.classifier.get_parameter("bias"))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        levels = self.pyramid(maps)
        size = (2 * levels[0].shape[-2], 2 * levels[0].shape[-1])
        # Of level i + 3 to the stride of level 2
        large = [enlarged(x, 2 ** (i + 1), size, "bilinear") for i, x in enumerate(levels)]
        return [self.classifier(self.layers(sum(large[1:], large[0])))]
