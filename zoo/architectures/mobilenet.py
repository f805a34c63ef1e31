"""MobileNetV2 and MobileNetV3 as PaddleClas builds them.

Both begin with an inverted residual of expansion 1 (with its 1x1 convolution), where timm has a
depthwise separable block. V3 has no bias before the classifier, squeezes by exactly a quarter, and
the small one too ends in 1280 features.

Howard et al. 2019, https://arxiv.org/abs/1905.02244, tables 1 and 2; reference:
PaddleClas ppcls/arch/backbone/legendary_models/mobilenet_v3.py and model_zoo/mobilenet_v2.py
(Apache-2.0).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.layers.helpers import make_divisible
from timm.models._efficientnet_blocks import SqueezeExcite
from timm.models._efficientnet_builder import (
    decode_arch_def,
    resolve_act_layer,
    resolve_bn_args,
    round_channels,
)
from timm.models.efficientnet import _create_effnet
from timm.models.mobilenetv3 import MobileNetV3, _create_mnv3
from torch import nn

# kernel, expanded channels, channels, squeeze-excitation, activation, stride
_Block = tuple[int, int, int, bool, str, int]
LARGE: tuple[_Block, ...] = (
    (3, 16, 16, False, "re", 1),
    (3, 64, 24, False, "re", 2),
    (3, 72, 24, False, "re", 1),
    (5, 72, 40, True, "re", 2),
    (5, 120, 40, True, "re", 1),
    (5, 120, 40, True, "re", 1),
    (3, 240, 80, False, "hs", 2),
    (3, 200, 80, False, "hs", 1),
    (3, 184, 80, False, "hs", 1),
    (3, 184, 80, False, "hs", 1),
    (3, 480, 112, True, "hs", 1),
    (3, 672, 112, True, "hs", 1),
    (5, 672, 160, True, "hs", 2),
    (5, 960, 160, True, "hs", 1),
    (5, 960, 160, True, "hs", 1),
)
SMALL: tuple[_Block, ...] = (
    (3, 16, 16, True, "re", 2),
    (3, 72, 24, False, "re", 2),
    (3, 88, 24, False, "re", 1),
    (5, 96, 40, True, "hs", 2),
    (5, 240, 40, True, "hs", 1),
    (5, 240, 40, True, "hs", 1),
    (5, 120, 48, True, "hs", 1),
    (5, 144, 48, True, "hs", 1),
    (5, 288, 96, True, "hs", 2),
    (5, 576, 96, True, "hs", 1),
    (5, 576, 96, True, "hs", 1),
)


def _mobilenet_v2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2 whose first block too has an expansion convolution (32 to 32)."""
    stages = [
        ["ir_r1_k3_s1_e1_c16"],
        ["ir_r2_k3_s2_e6_c24"],
        ["ir_r3_k3_s2_e6_c32"],
        ["ir_r4_k3_s2_e6_c64"],
        ["ir_r3_k3_s1_e6_c96"],
        ["ir_r3_k3_s2_e6_c160"],
        ["ir_r1_k3_s1_e6_c320"],
    ]
    settings = dict(
        block_args=decode_arch_def(stages),
        num_features=1280,
        stem_size=32,
        norm_layer=partial(nn.BatchNorm2d, **resolve_bn_args(kwargs)),
        act_layer=resolve_act_layer(kwargs, "relu6"),
        **kwargs,
    )
    return _create_effnet("mobilenetv2_100_ssld", pretrained, **settings)


def _mobilenet_v3(
    name: str,
    blocks: tuple[_Block, ...],
    last: int,
    width: float,
    pretrained: bool = False,
    **kwargs: Any,
) -> MobileNetV3:
    """MobileNetV3 of `width` times the channels."""
    settings = dict(
        block_args=decode_arch_def(_stages(blocks, last, width)),
        num_features=1280,
        stem_size=16,
        head_bias=False,
        round_chs_fn=partial(round_channels, multiplier=width),
        norm_layer=partial(nn.BatchNorm2d, **resolve_bn_args(kwargs)),
        act_layer=resolve_act_layer(kwargs, "hard_swish"),
        se_layer=partial(
            SqueezeExcite, gate_layer="hard_sigmoid", force_act_layer=nn.ReLU, rd_round_fn=int
        ),
        **kwargs,
    )
    return _create_mnv3(name, pretrained, **settings)


def _stages(blocks: tuple[_Block, ...], last: int, width: float) -> list[list[str]]:
    """timm's block strings; a stage begins where the stride or the number of channels changes.

    timm derives the expanded channels from a ratio, Paddle rounds them by themselves: the ratio is
    taken from the rounded numbers, which matters at widths other than 1.
    """
    stages: list[list[str]] = []
    before, channels_in = 0, int(make_divisible(16 * width))
    for kernel, expanded, channels, se, activation, stride in blocks:
        ratio = make_divisible(expanded * width) / channels_in
        block = f"ir_r1_k{kernel}_s{stride}_e{ratio!r}_c{channels}"
        block += ("_se0.25" if se else "") + ("_nre" if activation == "re" else "")
        if stride > 1 or channels != before:
            stages.append([])
        stages[-1].append(block)
        before, channels_in = channels, int(make_divisible(channels * width))
    return [*stages, [f"cn_r1_k1_s1_c{last}"]]


CREATE = {
    "mobilenetv2_100_ssld": _mobilenet_v2,
    **{
        name: partial(_mobilenet_v3, name, *settings)
        for name, *settings in (
            ("mobilenetv3_large_100_ssld", LARGE, 960, 1.0),
            ("mobilenetv3_small_100_ssld", SMALL, 576, 1.0),
            ("mobilenetv3_small_035_ssld", SMALL, 576, 0.35),
        )
    },
}
