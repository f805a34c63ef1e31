"""MobileNetV1, V2, V3, GhostNet, PP-LCNet and PP-LCNetV2 from Paddle to timm.

Found and checked by running both (docs/zoo.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from zoo.paddle.rename import (
    KEPT_BY_DROPOUT,
    DoesNotFit,
    Target,
    Weights,
    blocks_of,
    linear_to_conv,
    renamed,
    scale,
)

_BN_EPS = 1e-5  # paddle.nn.BatchNorm's default


def _blocks(model: nn.Module) -> list[str]:
    stages = model.get_submodule("blocks")
    return blocks_of(model, *(f"blocks.{i}" for i, _ in enumerate(stages.children())))


def mobilenet_v1(paddle: Weights, model: nn.Module) -> Weights:
    """PaddleClas ppcls/arch/backbone/legendary_models/mobilenet_v1.py; ReLU, not ReLU6."""
    at = _blocks(model)
    return renamed(
        paddle,
        {
            r"conv\.conv": "conv_stem",
            r"conv\.bn": "bn1",
            r"blocks\.(\d+)\.depthwise_conv\.conv": lambda m: f"{at[int(m[1])]}.conv_dw",
            r"blocks\.(\d+)\.depthwise_conv\.bn": lambda m: f"{at[int(m[1])]}.bn1",
            r"blocks\.(\d+)\.pointwise_conv\.conv": lambda m: f"{at[int(m[1])]}.conv_pw",
            r"blocks\.(\d+)\.pointwise_conv\.bn": lambda m: f"{at[int(m[1])]}.bn2",
            r"fc": "classifier",
        },
        linear="classifier",
    )


def mobilenet_v2(paddle: Weights, model: nn.Module) -> Weights:
    """PaddleClas ppcls/arch/backbone/model_zoo/mobilenet_v2.py."""
    block = r"conv(\d)\.(?:_first_block|conv\d_(\d))"

    def at(match: re.Match[str]) -> str:
        return f"blocks.{int(match[1]) - 2}.{int(match[2] or 1) - 1}"

    modules: dict[str, Target] = {
        **_inverted_residual(rf"{block}\._", at, "_conv", "_batch_norm"),
        r"conv1\._conv": "conv_stem",
        r"conv1\._batch_norm": "bn1",
        r"conv9\._conv": "conv_head",
        r"conv9\._batch_norm": "bn2",
        r"out": "classifier",
    }
    return renamed(paddle, modules, linear="classifier")


def _inverted_residual(
    block: str, at: Callable[[re.Match[str]], str], conv: str, norm: str
) -> dict[str, Target]:
    """The three convolutions of an inverted residual and their batch norms.

    Args:
        block: pattern of a block's name, up to the names of its convolutions.
        at: timm's name of the block that matched.
        conv, norm: what Paddle calls the two layers of a convolution.
    """
    modules: dict[str, Target] = {}
    parts = ("expand_conv", "conv_pw"), ("bottleneck_conv", "conv_dw"), ("linear_conv", "conv_pwl")
    for i, (part, name) in enumerate(parts, start=1):
        modules[rf"{block}{part}\.{conv}"] = lambda m, name=name: f"{at(m)}.{name}"
        modules[rf"{block}{part}\.{norm}"] = lambda m, i=i: f"{at(m)}.bn{i}"
    return modules


def mobilenet_v3(paddle: Weights, model: nn.Module) -> Weights:
    """PaddleClas ppcls/arch/backbone/legendary_models/mobilenet_v3.py.

    Its hard sigmoid rises by 0.2, timm's by 1/6: the layer before it is multiplied by 1.2.
    """
    at = _blocks(model)
    modules: dict[str, Target] = {
        **_inverted_residual(r"blocks\.(\d+)\.", lambda m: at[int(m[1])], "conv", "bn"),
        r"conv\.conv": "conv_stem",
        r"conv\.bn": "bn1",
        r"last_second_conv\.conv": f"{at[-1]}.conv",
        r"last_second_conv\.bn": f"{at[-1]}.bn1",
        r"last_conv": "conv_head",
        r"fc": "classifier",
        r"blocks\.(\d+)\.mid_se\.conv1": lambda m: f"{at[int(m[1])]}.se.conv_reduce",
        r"blocks\.(\d+)\.mid_se\.conv2": lambda m: f"{at[int(m[1])]}.se.conv_expand",
    }
    weights = renamed(paddle, modules, linear="classifier")
    for name in list(weights):
        if ".se.conv_expand." in name:
            scale(weights, name, 1.2)
    scale(weights, "classifier.weight", KEPT_BY_DROPOUT)
    return weights


def lcnet(paddle: Weights, model: nn.Module) -> Weights:
    """PaddleClas ppcls/arch/backbone/legendary_models/pp_lcnet.py.

    timm has a bias before the classifier, which Paddle has not: zero.
    """
    names = _blocks(model)
    # Paddle's fifth group is two stages of timm's.
    first = {"2": 0, "3": 1, "4": 3, "5": 5, "6": 11}
    block = r"blocks([2-6])\.(\d)"

    def at(match: re.Match[str]) -> str:
        return names[first[match[1]] + int(match[2])]

    weights = renamed(
        paddle,
        {
            r"conv1\.conv": "conv_stem",
            r"conv1\.bn": "bn1",
            rf"{block}\.dw_conv\.conv": lambda m: f"{at(m)}.conv_dw",
            rf"{block}\.dw_conv\.bn": lambda m: f"{at(m)}.bn1",
            rf"{block}\.pw_conv\.conv": lambda m: f"{at(m)}.conv_pw",
            rf"{block}\.pw_conv\.bn": lambda m: f"{at(m)}.bn2",
            rf"{block}\.se\.conv1": lambda m: f"{at(m)}.se.conv_reduce",
            rf"{block}\.se\.conv2": lambda m: f"{at(m)}.se.conv_expand",
            r"last_conv": "conv_head",
            r"fc": "classifier",
        },
        linear="classifier",
    )
    scale(weights, "classifier.weight", KEPT_BY_DROPOUT)
    weights["conv_head.bias"] = torch.zeros(weights["conv_head.weight"].shape[0])
    return weights


def lcnet_v2(paddle: Weights, model: nn.Module) -> Weights:
    """PaddleClas ppcls/arch/backbone/legendary_models/pp_lcnet_v2.py.

    Beside its branches a re-parameterised block holds their sum, `dw_conv.{weight,bias}`, which the
    network never reads as long as it has the branches.
    """
    branches = {n.split(".dw_conv_list.")[0] for n in paddle if ".dw_conv_list." in n}
    fused = {f"{block}.dw_conv.{leaf}" for block in branches for leaf in ("weight", "bias")}
    same = r"((?:stem|stages)\.[\d.]+(?:dw_conv\.|dw_conv_list\.\d\.|pw_conv\.)?(?:conv|bn))"
    weights = renamed(
        {name: tensor for name, tensor in paddle.items() if name not in fused},
        {
            same: r"\1",
            r"(stages\.\d\.\d)\.pw_conv_1\.(conv|bn)": r"\1.pw_conv.0.\2",
            r"(stages\.\d\.\d)\.pw_conv_2\.(conv|bn)": r"\1.pw_conv.1.\2",
            r"(stages\.\d\.\d)\.se\.conv([12])": r"\1.se.fc\2",
            r"last_conv": "conv_head",
            r"fc": "classifier",
        },
        linear="classifier",
    )
    scale(weights, "classifier.weight", KEPT_BY_DROPOUT)
    return weights


def ghostnet(paddle: Weights, model: nn.Module) -> Weights:
    """PaddleClas ppcls/arch/backbone/model_zoo/ghostnet.py.

    Its gate is clip(x, 0, 1) where timm's is clip(x/6 + 1/2, 0, 1): the layer before it becomes
    6x - 3. timm squeezes to a rounded number of channels: the ones that Paddle lacks are zero.
    Paddle's last convolution has a batch norm, timm's a bias: folded. Its dropout is the usual one.
    """
    at = _blocks(model)
    block = r"_ghostbottleneck_(\d+)"
    modules = {
        r"conv1\._conv": "conv_stem",
        r"conv1\._batch_norm": "bn1",
        r"conv_last\._conv": f"{at[-1]}.conv",
        r"conv_last\._batch_norm": f"{at[-1]}.bn1",
        r"fc_0\._conv": "conv_head",
        r"fc_0\._batch_norm": "bn_head",
        r"fc_1": "classifier",
        rf"{block}\.depthwise_conv\._conv": lambda m: f"{at[int(m[1])]}.conv_dw",
        rf"{block}\.depthwise_conv\._batch_norm": lambda m: f"{at[int(m[1])]}.bn_dw",
        rf"{block}\.se_block\.squeeze": lambda m: f"{at[int(m[1])]}.se.conv_reduce",
        rf"{block}\.se_block\.excitation": lambda m: f"{at[int(m[1])]}.se.conv_expand",
    }
    for kind, i in (("_conv", 0), ("_batch_norm", 1)):
        modules |= {
            rf"{block}\.ghost_module_(\d)\.(primary_conv|cheap_operation)\.{kind}": (
                lambda m, i=i: f"{at[int(m[1])]}.ghost{m[2]}.{m[3]}.{i}"
            ),
            rf"{block}\.shortcut_depthwise\.{kind}": (
                lambda m, i=i: f"{at[int(m[1])]}.shortcut.{i}"
            ),
            rf"{block}\.shortcut_conv\.{kind}": (
                lambda m, i=i: f"{at[int(m[1])]}.shortcut.{i + 2}"
            ),
        }
    weights = renamed(paddle, modules, linear="classifier")
    linear_to_conv(weights, r".*\.se\.conv_(?:reduce|expand)")
    for name in list(weights):
        if ".se.conv_expand." in name:
            scale(weights, name, 6.0, -3.0 if name.endswith(".bias") else 0.0)
        if ".se." in name:
            weights[name] = _padded(name, weights[name], model)
    _fold_batch_norm(weights, "conv_head", "bn_head")
    return weights


def _padded(name: str, tensor: Tensor, model: nn.Module) -> Tensor:
    """With zeros at the end of each axis, up to the size that the model has."""
    try:
        wanted = model.get_parameter(name).shape
    except AttributeError as error:
        raise DoesNotFit(f"there is no place for {name!r}") from error
    missing = [b - a for a, b in zip(tensor.shape, wanted, strict=True)]
    if min(missing) < 0:
        raise DoesNotFit(f"{name!r} is {tuple(tensor.shape)} instead of {tuple(wanted)}")
    before_and_after = [n for size in reversed(missing) for n in (0, size)]
    return torch.nn.functional.pad(tensor, before_and_after)


def _fold_batch_norm(weights: Weights, conv: str, norm: str) -> None:
    """gamma (w x - mean) / sqrt(var + eps) + beta as a convolution with a bias (in float64)."""
    leaves = ("weight", "bias", "running_mean", "running_var")
    if any(f"{norm}.{leaf}" not in weights for leaf in leaves):
        raise DoesNotFit("the batch norm after the last convolution is missing")
    gamma, beta, mean, var = (weights.pop(f"{norm}.{leaf}").double() for leaf in leaves)
    factor = gamma / (var + _BN_EPS).sqrt()
    kernel = weights[f"{conv}.weight"].double() * factor[:, None, None, None]
    weights[f"{conv}.weight"] = kernel.float()
    weights[f"{conv}.bias"] = (beta - mean * factor).float()
