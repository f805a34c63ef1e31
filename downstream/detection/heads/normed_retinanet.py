"""RetinaNet with batch norm, which trains from random weights: on an FPN, on NAS-FPN, and on a
backbone that has its own P3 to P7, as SpineNet. The detectors of Rethinking Pre-training and
Self-training (Zoph et al. 2020, https://arxiv.org/abs/2006.06882, section 3.2).

Pyramids, heads and their first weights as tensorflow/tpu models/official/detection/modeling/
architecture/fpn.py and heads.py, `RetinanetHead` (Apache-2.0): the heads' convolutions are shared
by all levels, and each level has batch norms of its own behind them. What differs:

- Losses, matching and decoding are torchvision's, as of `RetinaNet`: focal loss with gamma 2 and
  L1, where that code has 1.5 (configs/retinanet_config.py) and a Huber loss with delta .1 times 50.
- Batch norm has PyTorch's constants (eps 1e-5, momentum .1; there 1e-4 to 1e-3 and .003), with
  which short trainings, too, are evaluated with statistics of their own.
- No bias before a batch norm, which would take it away.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, cast

from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from downstream.backbone.backbone import Backbone
from downstream.dense.nas_fpn import NASFPN
from downstream.detection.heads.torchvision_heads import ANCHORS_PER_CELL, Maps, RetinaNet
from ssld.common.errors import InputError

STRIDES = (8, 16, 32, 64, 128)
ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}


class NormedRetinaNet(RetinaNet):
    """RetinaNet with batch norm in its FPN and heads.

    Args:
        backbone: gives maps of strides 8, 16, 32.
        num_classes: without background.
        pyramid: other than the FPN, and the channels of its maps.
        channels: width of pyramid and heads; less for runs on a CPU.
        head_convs: 3x3 convolutions of each head before its last (SpineNet-190: 7).
        activation: relu or silu (swish), of everything behind the backbone.
        options: of RetinaNet.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        pyramid: tuple[nn.Module, int] | None = None,
        *,
        channels: int = 256,
        head_convs: int = 4,
        activation: str = "relu",
        **options: Any,
    ) -> None:
        require_count("head_convs", head_convs)
        network, inputs = pyramid or (_NormedFPN(list(backbone.channels), channels), channels)
        head = _Head(inputs, channels, num_classes, head_convs, activation_named(activation))
        super().__init__(backbone, num_classes, network, head, channels=channels, **options)


class NASFPNRetinaNet(NormedRetinaNet):
    """RetinaNet on NAS-FPN.

    Args:
        backbone, num_classes, channels, activation, options: of NormedRetinaNet.
        repeats: how often NAS-FPN is repeated; less for runs on a CPU.
        separable: separable convolutions in NAS-FPN.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        repeats: int = 7,
        separable: bool = False,
        channels: int = 256,
        activation: str = "relu",
        **options: Any,
    ) -> None:
        require_count("repeats", repeats)
        pyramid = _NamedNASFPN(
            backbone.channels,
            channels,
            repeats,
            separable=separable,
            activation=activation_named(activation),
        )
        super().__init__(
            backbone,
            num_classes,
            (pyramid, channels),
            channels=channels,
            activation=activation,
            **options,
        )


class SpineNetRetinaNet(NormedRetinaNet):
    """RetinaNet on the very maps of a backbone that has its own pyramid.

    Args:
        backbone: gives maps of strides 8 to 128, all of one width.
        num_classes, options: of NormedRetinaNet.
        channels: width of the heads; null: that of the backbone's maps, as in the paper.
    """

    backbone_strides = STRIDES

    def __init__(
        self, backbone: Backbone, num_classes: int, *, channels: int | None = None, **options: Any
    ) -> None:
        width = backbone.channels[0]
        options["channels"] = channels or width
        super().__init__(backbone, num_classes, (nn.Identity(), width), **options)


def activation_named(name: str) -> type[nn.Module]:
    """Raises InputError where there is none of that name."""
    if name not in ACTIVATIONS:
        raise InputError(f"activation is {name!r}: give {' or '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def require_count(name: str, number: object) -> None:
    """Raises InputError unless it is a whole number above 0."""
    if type(number) is not int or number < 1:
        raise InputError(f"{name} is {number!r}: give a whole number, 1 or more")


class _NormedFPN(FeaturePyramidNetwork):
    """FPN with P6, P7 from P5, and a batch norm on each map that goes out (fpn.py)."""

    def __init__(self, in_channels: list[int], channels: int) -> None:
        super().__init__(in_channels, channels, LastLevelP6P7(channels, channels))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in STRIDES)

    def forward(self, x: Maps) -> Maps:
        maps = super().forward(x).items()
        return OrderedDict(
            (name, norm(level)) for norm, (name, level) in zip(self.norms, maps, strict=True)
        )


class _NamedNASFPN(NASFPN):
    def forward(self, maps: Maps) -> Maps:
        levels = super().forward(list(maps.values()))
        return OrderedDict((str(i), x) for i, x in enumerate(levels))


class _Head(RetinaNetHead):
    """torchvision's last convolutions, losses and order of anchors behind towers of our own."""

    def __init__(
        self,
        inputs: int,
        channels: int,
        num_classes: int,
        convs: int,
        activation: type[nn.Module],
    ) -> None:
        super().__init__(channels, ANCHORS_PER_CELL, num_classes)
        self.class_tower = _Tower(inputs, channels, convs, activation)
        self.box_tower = _Tower(inputs, channels, convs, activation)
        for head, last in (
            (self.classification_head, self.classification_head.cls_logits),
            (self.regression_head, self.regression_head.bbox_reg),
        ):
            head.conv = nn.Sequential()
            nn.init.normal_(last.weight, std=1e-5)

    def forward(self, x: list[Tensor]) -> dict[str, Tensor]:
        return {
            "cls_logits": self.classification_head(self.class_tower(x)),
            "bbox_regression": self.regression_head(self.box_tower(x)),
        }


class _Tower(nn.Module):
    """Convolutions that all levels share, with batch norms for each level."""

    def __init__(self, inputs: int, channels: int, convs: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels if i else inputs, channels, 3, padding=1, bias=False)
            for i in range(convs)
        )
        self.norms = nn.ModuleList(
            nn.ModuleList(nn.BatchNorm2d(channels) for _ in STRIDES) for _ in range(convs)
        )
        self.activation = activation()
        for conv in self.convs:
            nn.init.normal_(conv.get_parameter("weight"), std=0.01)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Of each level float [b, inputs, h, w] -> [b, channels, h, w]."""
        for conv, norms in zip(self.convs, self.norms, strict=True):
            levels = zip(cast(nn.ModuleList, norms), maps, strict=True)
            maps = [self.activation(norm(conv(x))) for norm, x in levels]
        return maps
