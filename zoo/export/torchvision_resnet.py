"""timm's ResNets as torchvision's, for code that expects those (detection, say).

timm's ResNet began as a copy of torchvision's: stages, blocks and keys have the same names, and
where `-d` and other variants differ (stem, pooling before the first block, shortcuts), a module of
the same name is another one. So a generated `model.py` makes torchvision's ResNet and replaces what
differs, found by comparing the two networks module by module; weights keep their keys.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.layers.drop import DropBlock2d, DropPath
from timm.models import resnet as timm_resnet
from torch import Tensor, nn
from torchvision.models import resnet as tv_resnet

from zoo.errors import InputError

FILES = ("model.py", "model.safetensors")

WORD = re.compile(r"[A-Za-z0-9_.-]{1,128}")
NUMBERS = re.compile(r"[0-9.e+-]{1,32}(,[0-9.e+-]{1,32})*")

STAGES = ("layer1", "layer2", "layer3", "layer4")

TEMPLATE = '''"""{architecture} as torchvision's ResNet, by `ssld zoo export`.

    from model import build
    logits = build()(images)  # float32 [batch, {channels}, height, width] -> [batch, {classes}]

Preprocessing: {preprocessing}

Stages, channels and names are torchvision's, so that torchvision's BackboneWithFPN takes it:
`build(FrozenBatchNorm2d)` is what its detectors use. Needs torch, torchvision and safetensors.
The header of model.safetensors repeats the above{labels}.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from safetensors.torch import load_file
from torch import nn
from torchvision.models.resnet import {block}, ResNet


def build(norm_layer: Callable[..., nn.Module] = nn.BatchNorm2d) -> ResNet:
    """The network on the CPU, in eval mode, with the weights that lie beside this file."""
    norm = partial(norm_layer, eps={eps})
    network = ResNet({arguments})
{replaced}    network.load_state_dict(load_file(Path(__file__).with_name("model.safetensors")))
    return network.eval()
'''


def check_folder(out: Path) -> None:
    """Raises InputError where an export would replace anything else than an earlier one."""
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    earlier = "model.py" in names and b"by `ssld zoo export`" in (out / "model.py").read_bytes()
    if not names <= set(FILES) or (names and not earlier):
        raise InputError(f"{out} has other files in it: give a new folder")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, and this export is a folder: give another name")


def write(
    network: nn.Module, folder: Path, header: dict[str, str], size: tuple[int, int] | None = None
) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Write `model.py` and `model.safetensors`.

    Args:
        network: in float32 on the CPU.
        header: facts about the network, kept in the weights' header.
        size: None, as torchvision's ResNet takes all heights and widths.

    Returns:
        What was made, and what the written folder computes.

    Raises:
        InputError: torchvision's ResNet cannot express it.
    """
    assert size is None, size
    source = _source(network, header)
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(source, encoding="utf-8")
    tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"} | header)
    return "torchvision ResNet", _load(folder)


def _load(folder: Path) -> Callable[[Tensor], Tensor]:
    path = folder / "model.py"
    # Not imported, which would leave a __pycache__ in the folder.
    namespace: dict[str, Any] = {"__file__": str(path), "__name__": "model"}
    exec(compile(path.read_text(encoding="utf-8"), path, "exec"), namespace)
    built = namespace["build"]()

    def run(images: Tensor) -> Tensor:
        with torch.no_grad():
            return built(images)

    return run


def _check_words(header: dict[str, str]) -> None:
    """The header's words go into `model.py`, which is run: nothing but names and numbers may."""
    for key in ("architecture", "interpolation", "crop_mode"):
        if not WORD.fullmatch(header.get(key, "center")):
            raise InputError(
                f"the network's pretrained_cfg has {key} {header[key][:80]!r}, which is no name "
                "and would get into a program: mend it"
            )
    for key in ("input_size", "mean", "std", "crop_pct"):
        if not NUMBERS.fullmatch(header.get(key, "1")):
            raise InputError(
                f"the network's pretrained_cfg has {key} {header[key][:80]!r}, which are no "
                "numbers and would get into a program: mend it"
            )


def _source(network: Any, header: dict[str, str]) -> str:
    _check_words(header)
    _check_kind(network)
    first: Any = network.layer1[0]
    arguments: dict[str, Any] = {"num_classes": network.fc.out_features}
    if isinstance(first, timm_resnet.Bottleneck):
        arguments["groups"] = first.conv2.groups
        arguments["width_per_group"] = first.conv2.out_channels // first.conv2.groups
    usual = {"groups": 1, "width_per_group": 64}
    arguments = {key: value for key, value in arguments.items() if usual.get(key) != value}
    layers = [len(getattr(network, stage)) for stage in STAGES]
    block = type(first).__name__
    with torch.device("meta"):
        plain = tv_resnet.ResNet(getattr(tv_resnet, block), layers, **arguments)
    eps = getattr(network.bn1, "eps", 1e-5)
    replaced = _replaced(network, plain, eps)
    _check_blocks(network, plain, eps)
    given = [block, str(layers), *(f"{key}={value}" for key, value in arguments.items())]
    return TEMPLATE.format(
        architecture=header["architecture"],
        channels=header["input_size"].split(",")[0],
        classes=network.fc.out_features,
        preprocessing=_preprocessing(header),
        labels=", and label_names in JSON" if "label_names" in header else "",
        block=block,
        eps=eps,
        arguments=", ".join(given),
        replaced=replaced,
    )


def _preprocessing(header: dict[str, str]) -> str:
    _, height, width = (int(n) for n in header["input_size"].split(","))
    share = float(header.get("crop_pct", 1))
    to = [math.floor(side / share) for side in (height, width)]
    how, mode = header.get("interpolation", "bilinear"), header.get("crop_mode", "center")
    if mode != "center":
        resize = f"fit into {height} x {width} pixels ({how}, timm's crop_mode {mode!r}),"
    else:
        side = (
            f"the shorter side to {to[0]}" if height == width else f"to at least {to[0]} x {to[1]}"
        )
        resize = f"resize {side} pixels ({how}), crop {height} x {width} from the centre,"
    mean, std = (header[key].replace(",", ", ") for key in ("mean", "std"))
    return f"RGB,\n{resize}\ndivide by 255, subtract mean ({mean}), divide by std ({std})."


def _replaced(network: nn.Module, plain: nn.Module, eps: float) -> str:
    """Lines that make of torchvision's `plain` ResNet this one: stem, pooling, shortcuts."""
    names = ["conv1", "bn1", "maxpool", *(f"{stage}.0.downsample" for stage in STAGES)]
    lines = []
    for name in names:
        ours, theirs = _get(network, name), _get(plain, name)
        code = _code(ours, eps, name)
        if code != _code(theirs, eps, name):
            target = name.replace(".0.", "[0].")
            lines.append(f"    network.{target} = {code}\n")
    return "".join(lines)


def _check_blocks(network: nn.Module, plain: nn.Module, eps: float) -> None:
    """Every block must be torchvision's; shortcuts of first blocks are `_replaced`'s matter."""
    first = type(_get(network, "layer1.0"))
    for stage in STAGES:
        for i, block in enumerate(_get(network, stage)):
            name = f"{stage}.{i}"
            if type(block) is not first:
                raise _inexpressible(f"blocks of two kinds ({name})")
            for part, module in block.named_children():
                if part == "downsample" and i == 0:
                    continue
                theirs = _get(plain, f"{name}.{part}")
                if theirs is None:
                    _check_idle(module, f"{name}.{part}")
                elif _code(module, eps, part) != _code(theirs, eps, part):
                    code = _code(module, eps, f"{name}.{part}")
                    raise _inexpressible(f"{name}.{part} = {code}")


def _check_idle(module: nn.Module, name: str) -> None:
    """timm's blocks have parts that torchvision's have not; these do nothing at inference."""
    idle = (nn.Identity, nn.ReLU, DropBlock2d, DropPath)
    if type(module) not in idle:
        raise _inexpressible(f"{name}, a {type(module).__name__}")


def _check_kind(network: Any) -> None:
    for method in ("forward", "forward_features", "forward_head"):
        if getattr(type(network), method, None) is not getattr(timm_resnet.ResNet, method):
            raise InputError(
                f"a {type(network).__name__} is no ResNet: use the format onnx or torchscript"
            )
    pool, fc = network.global_pool, network.fc
    if not isinstance(pool, SelectAdaptivePool2d) or pool.pool_type != "avg":
        raise _inexpressible("a head without global average pooling")
    if type(fc) is not nn.Linear or fc.bias is None:
        raise _inexpressible("a network without a linear classifier")
    if type(network.act1) is not nn.ReLU:
        raise _inexpressible(f"{type(network.act1).__name__} activations")
    if not all(isinstance(getattr(network, stage, None), nn.Sequential) for stage in STAGES):
        raise _inexpressible("another number of stages than 4")
    if type(network.layer1[0]) not in (timm_resnet.BasicBlock, timm_resnet.Bottleneck):
        raise _inexpressible(f"{type(network.layer1[0]).__name__} blocks")


def _get(network: nn.Module, name: str) -> Any:
    """A module by its full name, None where there is none."""
    return dict(network.named_modules()).get(name)


def _code(module: nn.Module | None, eps: float, name: str) -> str:
    """Python that makes the module, for stems, poolings and shortcuts: mostly its repr."""
    kind = type(module)
    if module is None:
        return "None"
    if kind is nn.Sequential:
        inner = [f"        {_code(part, eps, name)},\n" for part in module.children()]
        return f"nn.Sequential(\n{''.join(inner)}    )"
    if kind is nn.BatchNorm2d and getattr(module, "eps", None) == eps:
        return f"norm({module.num_features})"
    if kind is nn.ReLU:
        return "nn.ReLU(inplace=True)"
    if kind is nn.AvgPool2d:  # whose repr does not say all
        counts = f"ceil_mode={module.ceil_mode}, count_include_pad={module.count_include_pad}"
        return f"nn.{module!r}".removesuffix(")") + f", {counts})"
    if kind in (nn.Conv2d, nn.MaxPool2d, nn.Identity):
        return f"nn.{module!r}"
    raise _inexpressible(f"{name}, a {kind.__name__}")


def _inexpressible(what: str) -> InputError:
    return InputError(
        f"torchvision's ResNet cannot have {what}: ResNet, ResNet-D, ResNeXt and wide ResNet of "
        "timm can be exported so (resnet18 to resnet200d); else use the format onnx or torchscript"
    )
