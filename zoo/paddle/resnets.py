"""ResNet-vd, Res2Net-vd, HRNet and PP-HGNet from Paddle to timm; checked in docs/zoo.md."""

from __future__ import annotations

import re

from torch import nn

from zoo.paddle.rename import (
    KEPT_BY_DROPOUT,
    Weights,
    blocks_of,
    linear_to_conv,
    renamed,
    scale,
)


def resnet_vd(paddle: Weights, model: nn.Module) -> Weights:
    """PaddleClas ppcls/arch/backbone/legendary_models/resnet.py.

    Blocks are counted through all stages. timm's stem is one Sequential of three convolutions.
    """
    at = blocks_of(model, *(f"layer{i}" for i in (1, 2, 3, 4)))
    return renamed(
        paddle,
        {
            r"stem\.2\.bn": "bn1",
            r"stem\.(\d)\.conv": lambda m: f"conv1.{3 * int(m[1])}",
            r"stem\.([01])\.bn": lambda m: f"conv1.{3 * int(m[1]) + 1}",
            r"blocks\.(\d+)\.conv(\d)\.conv": lambda m: f"{at[int(m[1])]}.conv{int(m[2]) + 1}",
            r"blocks\.(\d+)\.conv(\d)\.bn": lambda m: f"{at[int(m[1])]}.bn{int(m[2]) + 1}",
            r"blocks\.(\d+)\.short\.conv": lambda m: f"{at[int(m[1])]}.downsample.1",
            r"blocks\.(\d+)\.short\.bn": lambda m: f"{at[int(m[1])]}.downsample.2",
            r"fc": "fc",
        },
        linear="fc",
    )


def res2net_vd(paddle: Weights, model: nn.Module) -> Weights:
    """PaddleClas ppcls/arch/backbone/model_zoo/res2net_vd.py."""
    block = r"bb_(\d)_(\d+)"

    def at(match: re.Match[str]) -> str:
        return f"layer{int(match[1]) + 1}.{match[2]}"

    return renamed(
        paddle,
        {
            r"conv1_3\._batch_norm": "bn1",
            r"conv1_(\d)\._conv": lambda m: f"conv1.{3 * int(m[1]) - 3}",
            r"conv1_([12])\._batch_norm": lambda m: f"conv1.{3 * int(m[1]) - 2}",
            rf"{block}\.conv0\._conv": lambda m: f"{at(m)}.conv1",
            rf"{block}\.conv0\._batch_norm": lambda m: f"{at(m)}.bn1",
            rf"{block}\.res\w+_(\d)\._conv": lambda m: f"{at(m)}.convs.{int(m[3]) - 1}",
            rf"{block}\.res\w+_(\d)\._batch_norm": lambda m: f"{at(m)}.bns.{int(m[3]) - 1}",
            rf"{block}\.conv2\._conv": lambda m: f"{at(m)}.conv3",
            rf"{block}\.conv2\._batch_norm": lambda m: f"{at(m)}.bn3",
            rf"{block}\.short\._conv": lambda m: f"{at(m)}.downsample.1",
            rf"{block}\.short\._batch_norm": lambda m: f"{at(m)}.downsample.2",
            r"out": "fc",
        },
        linear="fc",
    )


def hrnet(paddle: Weights, model: nn.Module) -> Weights:
    """PaddleClas ppcls/arch/backbone/legendary_models/hrnet.py, with or without SE."""
    leaf = {"conv": 0, "bn": 1}

    def bottleneck(at: str, match: re.Match[str]) -> str:
        """`convN.conv`, `convN.bn`, `conv_down.conv`, `se.fc_...` as timm calls them."""
        part, kind = match["part"], match["kind"]
        if part == "conv_down":
            return f"{at}.downsample.{leaf[kind]}"
        return f"{at}.{kind}{part.removeprefix('conv')}"

    se = r"se\.fc_(?P<gate>squeeze|excitation)"
    gates = {"squeeze": "fc1", "excitation": "fc2"}
    inner = r"(?P<part>conv\d|conv_down)\.(?P<kind>conv|bn)"
    places = {
        r"layer1\.(\d)": lambda m: f"layer1.{m[1]}",
        r"last_cls\.func_list\.(\d)": lambda m: f"incre_modules.{m[1]}.0",
        r"st(\d)\.stage_func_list\.(\d)\.basic_block_list\.(\d)\.(\d)": (
            lambda m: f"stage{m[1]}.{m[2]}.branches.{m[3]}.{m[4]}"
        ),
    }
    modules = {}
    for pattern, at in places.items():
        modules[rf"{pattern}\.{inner}"] = lambda m, at=at: bottleneck(at(m), m)
        modules[rf"{pattern}\.{se}"] = lambda m, at=at: f"{at(m)}.se.{gates[m['gate']]}"
    fuse = {stage: _fused(stage) for stage in (2, 3, 4)}
    modules |= {
        r"conv_layer1_(\d)\.(conv|bn)": r"\2\1",
        r"conv_tr1_1\.(conv|bn)": lambda m: f"transition1.0.{leaf[m[1]]}",
        r"conv_tr1_2\.(conv|bn)": lambda m: f"transition1.1.0.{leaf[m[1]]}",
        r"conv_tr([23])\.(conv|bn)": lambda m: f"transition{m[1]}.{m[1]}.0.{leaf[m[2]]}",
        r"st(\d)\.stage_func_list\.(\d)\.fuse_func\.residual_func_list\.(\d+)\.(conv|bn)": (
            lambda m: f"stage{m[1]}.{m[2]}.fuse_layers.{fuse[int(m[1])][int(m[3])]}.{leaf[m[4]]}"
        ),
        r"cls_head_conv_list\.(\d)\.(conv|bn)": lambda m: f"downsamp_modules.{m[1]}.{leaf[m[2]]}",
        r"conv_last\.(conv|bn)": lambda m: f"final_layer.{leaf[m[1]]}",
        r"fc": "classifier",
    }
    weights = renamed(paddle, modules, linear="classifier")
    linear_to_conv(weights, r".*\.se\.fc[12]")
    return weights


def _fused(branches: int) -> list[str]:
    """Paddle's one list of fusing convolutions, as timm's `to.from` (up) or `to.from.step` (down).

    Stage n has n branches.
    """
    names = []
    for to in range(branches):
        for source in range(branches):
            if source > to:
                names.append(f"{to}.{source}")
            names += [f"{to}.{source}.{step}" for step in range(to - source)]
    return names


def hgnet(paddle: Weights, model: nn.Module) -> Weights:
    """PaddleClas ppcls/arch/backbone/legendary_models/pp_hgnet.py: tiny and small."""
    return renamed(
        paddle,
        {
            r"stem\.(\d)\.(conv|bn)": r"stem.stem.\1.\2",
            r"(stages\.\d\.blocks\.\d\.layers\.\d\.(?:conv|bn))": r"\1",
            r"(stages\.\d\.downsample\.(?:conv|bn))": r"\1",
            r"(stages\.\d\.blocks\.\d)\.aggregation_conv\.(conv|bn)": r"\1.aggregation.0.\2",
            r"(stages\.\d\.blocks\.\d)\.att\.conv": r"\1.aggregation.1.conv",
            r"last_conv": "head.last_conv.0",
            r"fc": "head.fc",
        },
        linear="head.fc",
    )


def hgnet_base(paddle: Weights, model: nn.Module) -> Weights:
    """The base model alone drops 0.2 of its units, "downscale in infer"."""
    weights = hgnet(paddle, model)
    scale(weights, "head.fc.weight", KEPT_BY_DROPOUT)
    return weights


def hgnet_v2(paddle: Weights, model: nn.Module) -> Weights:
    """PaddleClas ppcls/arch/backbone/legendary_models/pp_hgnet_v2.py; no dropout."""
    inside = r"(?:conv1\.|conv2\.)?(?:conv|bn|lab)"
    return renamed(
        paddle,
        {
            rf"(stem\.stem\w+\.{inside})": r"\1",
            rf"(stages\.\d\.blocks\.\d\.layers\.\d\.{inside})": r"\1",
            rf"(stages\.\d\.downsample\.{inside})": r"\1",
            rf"(stages\.\d\.blocks\.\d)\.aggregation_squeeze_conv\.({inside})": (
                r"\1.aggregation.0.\2"
            ),
            rf"(stages\.\d\.blocks\.\d)\.aggregation_excitation_conv\.({inside})": (
                r"\1.aggregation.1.\2"
            ),
            r"last_conv": "head.last_conv.0",
            r"lab": "head.last_conv.2",
            r"fc": "head.fc",
        },
        linear="head.fc",
    )
