"""ResNet34-D and Res2Net-D as PaddleClas builds them ("vd").

Reference: PaddleClas ppcls/arch/backbone/legendary_models/resnet.py and model_zoo/res2net_vd.py
(Apache-2.0); He et al. 2019, https://arxiv.org/abs/1812.01187; Gao et al. 2019,
https://arxiv.org/abs/1904.01169.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.models._builder import build_model_with_cfg
from timm.models.res2net import Bottle2neck
from timm.models.resnet import BasicBlock, ResNet, downsample_avg
from torch import nn

_D = dict(stem_width=32, stem_type="deep", avg_down=True)


class ResNetWithFirstShortcut(ResNet):
    """ResNet of basic blocks with a convolution in the very first shortcut too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        first: Any = self.get_submodule("layer1.0")
        channels = first.conv1.in_channels
        like = first.conv1.weight
        shortcut: Any = downsample_avg(
            channels, channels, 1, norm_layer=type(first.bn1), device=like.device, dtype=like.dtype
        )
        nn.init.kaiming_normal_(shortcut[1].weight, mode="fan_out", nonlinearity="relu")
        first.downsample = shortcut


class PaddleBottle2neck(Bottle2neck):
    """Only blocks that change the stride begin a hierarchy anew, and padding counts in no mean."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1, *args: Any, **kw: Any) -> None:
        super().__init__(inplanes, planes, stride, *args, **kw)
        if inplanes == planes:  # layer1.0, the one block with a shortcut convolution and no stride
            self.is_first, self.pool = False, None
        elif self.pool is not None:
            self.pool = nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)


def _resnet34d(pretrained: bool = False, **kwargs: Any) -> ResNet:
    settings = dict(block=BasicBlock, layers=(3, 4, 6, 3), **_D)
    return build_model_with_cfg(
        ResNetWithFirstShortcut, "resnet34d_ssld", pretrained, **{**settings, **kwargs}
    )


def _res2net(name: str, layers: tuple[int, ...], pretrained: bool = False, **kwargs: Any) -> ResNet:
    """Res2Net-D, 26w x 4s."""
    settings = dict(
        block=PaddleBottle2neck, layers=layers, base_width=26, block_args=dict(scale=4), **_D
    )
    return build_model_with_cfg(ResNet, name, pretrained, **{**settings, **kwargs})


CREATE = {
    "resnet34d_ssld": _resnet34d,
    **{
        name: partial(_res2net, name, layers)
        for name, layers in (
            ("res2net50d_ssld", (3, 4, 6, 3)),
            ("res2net101d_ssld", (3, 4, 23, 3)),
            ("res2net200d_ssld", (3, 12, 48, 3)),  # timm has 24 and 36 in the middle
        )
    },
}
