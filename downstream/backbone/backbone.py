"""Any classifier as a feature pyramid whose maps are, to the bit, the classifier's own.

The maps are those of the very classifier that `open_network` loaded strictly, by timm's
`forward_intermediates`; nothing is copied by name into another network, which silently loads
nothing for several architectures. What stands behind the last map, the head, is removed.

Frozen batch norm is timm's own modules in eval mode: putting others in their place would lose the
activation that `BatchNormAct2d` has inside.

A plain vision transformer has one map, of which `simple_pyramid.py` makes those of other strides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from timm.models._manipulate import group_with_matcher
from timm.models.hrnet import HighResolutionNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from downstream.backbone.config import PARTS, PRESETS, BackboneConfig
from downstream.backbone.simple_pyramid import SimplePyramid
from downstream.backbone.weights import architecture, create, is_distilled, open_classifier
from ssld.common.errors import InputError, one_line
from ssld.models.opening import load_strictly

_PROBE_PX = 64


@dataclass(frozen=True, kw_only=True)
class Description:
    """All that a `Backbone` is but for its weights: enough to build it again. `asdict` is JSON."""

    architecture: str
    """Name in timm or the zoo, without the tag of weights."""
    args: dict[str, Any]
    """Further arguments of `timm.create_model`."""
    wanted: tuple[int, ...]
    """Strides of the maps, in the network without dilation."""
    output_stride: int
    """Stride at which dilation begins to take the place of striding."""
    input_size: int
    """Side in px of the images that its weights were trained or tested on."""
    mean: tuple[float, ...]
    """Of pixel values in [0, 1], to subtract; red, green, blue."""
    std: tuple[float, ...]
    """To divide by."""
    pretrained: bool
    """Whether training began with weights that were not random."""
    distilled: bool
    """Whether their metadata says that a teacher taught them."""
    freeze_batch_norm: bool
    """As in `BackboneConfig`, with null resolved."""
    frozen_stages: int
    """As in `BackboneConfig`."""
    lr: str | tuple[float, ...]
    """As in `BackboneConfig`."""


class Backbone(nn.Module):
    """Feature maps of a classifier.

    Attributes:
        strides, channels: of the maps, from shallow to deep; measured, not only stated.
        mean, std: normalisation of pixel values in [0, 1] that the weights expect.
        input_size: side in px of the images that the weights were trained or tested on.
        architecture, args: what `timm.create_model` builds it from.
        pretrained, distilled: where its weights are from.
        description: all of this and more, for `rebuild`.

    Args:
        classifier: a classifier of timm, without dilation; it is taken apart.

    Raises:
        InputError: the network has no maps of these strides, or none at all; no dilation to this
            output stride; a tensor that the maps need would be lost.
    """

    def __init__(self, classifier: nn.Module, description: Description) -> None:
        super().__init__()
        self.description = description
        self.architecture, self.args = description.architecture, dict(description.args)
        self.mean, self.std = description.mean, description.std
        self.input_size = description.input_size
        self.pretrained, self.distilled = description.pretrained, description.distilled
        model: Any = classifier
        reductions = _reductions(model, self.architecture)
        plain = len(set(reductions)) == 1  # a vision transformer: all blocks have one stride
        if plain:
            self.indices = [len(reductions) - 1]
            model = _of_any_size(model, description)
        else:
            self.indices = _levels(reductions, description.wanted, self.architecture)
        if description.output_stride != 32:
            model = _dilated(model, description)
        side = self.input_size if model.pretrained_cfg.get("fixed_input_size") else _PROBE_PX
        if isinstance(model, HighResolutionNet):  # maps are the branches, not the head's wider ones
            model.incre_modules = model.downsamp_modules = model.final_layer = None
        maps, reached, self._parts = _probe(model, self.indices, side, self.architecture)
        self.model = _without_head(model, self.indices, maps, reached, side)
        bound = description.output_stride
        self.strides = tuple(
            reductions[i] if bound == 32 else min(reductions[i], bound) for i in self.indices
        )
        self.channels = tuple(int(x.shape[1]) for x in maps)
        _check_strides(self.strides, maps, side, self.architecture)
        self.pyramid: SimplePyramid | None = None
        if plain:
            found = (self.channels[0], self.strides[0])
            self.pyramid = SimplePyramid(*found, description.wanted, self.architecture)
            self.strides, self.channels = description.wanted, tuple(self.pyramid.channels)
        self._frozen = self._freeze()
        self.train()

    def forward(self, x: Tensor) -> list[Tensor]:
        """[b, 3, h, w] normalised -> maps [b, channels[i], h / strides[i], w / strides[i]]."""
        maps = self.model.forward_intermediates(x, indices=self.indices, intermediates_only=True)
        if self.pyramid is None:
            return maps
        height, width = x.shape[-2:]  # maps reach into what was padded to a whole patch
        return [
            level[..., : math.ceil(height / stride), : math.ceil(width / stride)]
            for level, stride in zip(self.pyramid(maps[0]), self.strides, strict=True)
        ]

    def train(self, mode: bool = True) -> Backbone:
        """Frozen batch norm and frozen stages stay in eval mode."""
        super().train(mode)
        for name in self._frozen:  # by name: synchronised batch norm replaces modules
            self.model.get_submodule(name).eval()
        return self

    def tuned(self) -> bool:
        """Whether `lr` came out as the preset of distilled backbones."""
        lr = self.description.lr
        return lr == "tuned" or (lr == "auto" and self.distilled)

    def lr_scales(self, task: str = "detection") -> dict[str, float]:
        """Learning rate over that of the heads for each of `named_parameters()`.

        The parts are stem and stages 1 to 4, as ResNet, HRNet, ConvNeXt and HGNet have them. Where
        timm's `group_matcher` knows another number of groups, from 0, the stem, to n, they are
        spread evenly: group i belongs to part 4 i / n, rounded, halves up. So MobileNetV3-large,
        a stem and blocks 0 to 6, has the parts stem; 0 and 1; 2 and 3; 4 and 5; 6.

        Args:
            task: whose preset `lr: tuned` stands for, a key of `PRESETS`.
        """
        lr = self.description.lr
        names = [name for name, _ in self.named_parameters()]
        if isinstance(lr, str) and not self.tuned():
            return dict.fromkeys(names, 1.0)
        factors = PRESETS[task] if isinstance(lr, str) else lr
        return {
            name: 1.0 if name.startswith("pyramid.") else float(factors[self.part(name)])
            for name in names
        }

    def part(self, name: str) -> int:
        """0 for a parameter of the stem, 1 to 4 for one of that stage; a pyramid is of the last.

        Raises:
            InputError: timm does not say which parameters of this network are whose.
        """
        if not self._parts:
            raise InputError(
                f"timm does not know the stages of backbone {self.architecture}: set backbone.lr "
                "to same and backbone.frozen_stages to 0"
            )
        return self._parts.get(name.removeprefix("model."), PARTS - 1)

    def _freeze(self) -> list[str]:
        """Stop the training of what is to stay; returns the modules that stay in eval mode."""
        stages, kept = self.description.frozen_stages, []
        still = {k for k, _ in self.model.named_parameters() if stages and self.part(k) < stages}
        for name in still:
            self.model.get_parameter(name).requires_grad_(False)
        for name, module in self.model.named_modules():
            own = {f"{name}.{key}" for key, _ in module.named_parameters()}
            if own and own <= still:
                kept.append(name)
            elif self.description.freeze_batch_norm and isinstance(module, _BatchNorm):
                for parameter in (module.weight, module.bias):  # its activation may have others
                    if parameter is not None:
                        parameter.requires_grad_(False)
                kept.append(name)
        return kept


def open_backbone(
    config: BackboneConfig,
    *,
    strides: Sequence[int] = (4, 8, 16, 32),
    output_stride: int = 32,
) -> Backbone:
    """The backbone that `config` names, with its weights, every one of them accounted for.

    Args:
        strides: of the maps wanted, by their stride without dilation, from shallow to deep; of
            several maps of one stride the deepest.
        output_stride: 8 or 16: the stages beyond it dilate their convolutions instead of striding
            (Chen et al. 2017, https://arxiv.org/abs/1706.05587, section 3.1); `Backbone.strides`
            then has this number for all their maps.

    Raises:
        InputError: what `open_classifier` and `Backbone` raise.
    """
    network = open_classifier(config)
    name, args = architecture(network.model)
    description = Description(
        architecture=name,
        args=args,
        wanted=tuple(sorted(strides)),
        output_stride=output_stride,
        input_size=network.input_size,
        mean=network.mean,
        std=network.std,
        pretrained=config.pretrained,
        distilled=is_distilled(config),
        freeze_batch_norm=config.frozen_batch_norm,
        frozen_stages=config.frozen_stages,
        lr=config.lr if isinstance(config.lr, str) else tuple(config.lr),
    )
    return Backbone(network.model, description)


def describe(backbone: Backbone) -> dict[str, Any]:
    """What `rebuild` needs, as JSON can hold it."""
    values = asdict(backbone.description)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def rebuild(description: Mapping[str, Any]) -> Backbone:
    """The same backbone with random weights, from what `describe` said of it; nothing is fetched.

    Raises:
        InputError: the description is damaged, or this version of timm lacks the architecture.
    """
    known = {field.name for field in fields(Description)}
    if known != description.keys():
        wrong = ", ".join(sorted(known ^ description.keys()))
        raise InputError(
            f"the description of the backbone has missing or unknown keys ({wrong}): export the "
            "model again with this version"
        )
    values: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in description.items()}
    described = Description(**values)
    return Backbone(create(described.architecture, described.args), described)


def _reductions(model: Any, name: str) -> list[int]:
    """Stride of every map that timm knows of."""
    info = getattr(model, "feature_info", None)
    if not info or not hasattr(model, "forward_intermediates"):
        raise InputError(f"backbone {name} has no feature maps in timm: choose another network")
    return [int(level["reduction"]) for level in info]


def _levels(reductions: Sequence[int], wanted: Sequence[int], name: str) -> list[int]:
    missing = [stride for stride in wanted if stride not in reductions]
    if missing:
        have, lack = (", ".join(map(str, sorted(set(x)))) for x in (reductions, missing))
        raise InputError(
            f"backbone {name} has feature maps of stride {have}, not of {lack}: choose a network "
            "that has them, for example resnet50d"
        )
    return [max(i for i, x in enumerate(reductions) if x == stride) for stride in wanted]


def _of_any_size(model: Any, description: Description) -> Any:
    """The same vision transformer for images of other sizes: its position embeddings are resized,
    images padded to whole patches."""
    refusal = (
        f"backbone {description.architecture} has one map, and takes images of one size alone: "
        "choose a network with maps of several strides, for example resnet50d, or a vision "
        "transformer of any size, for example vit_small_patch16_224"
    )
    return _rebuilt(model, description, refusal, dynamic_img_size=True, dynamic_img_pad=True)


def _dilated(model: Any, description: Description) -> Any:
    stride = description.output_stride
    refusal = (
        f"backbone {description.architecture} has no dilation to output stride {stride}: choose a "
        "network that has, for example resnet50d"
    )
    return _rebuilt(model, description, refusal, output_stride=stride)


def _rebuilt(model: Any, description: Description, refusal: str, **more: Any) -> Any:
    """The network with further arguments, and the tensors of the one without."""
    try:
        other = create(description.architecture, {**description.args, **more})
    except InputError as error:
        raise InputError(refusal) from error
    if other.num_classes != model.num_classes:
        other.reset_classifier(model.num_classes)
    load_strictly(other, model.state_dict(), f"backbone {description.architecture}")
    return other


def _probe(
    model: Any, indices: Sequence[int], side: int, name: str
) -> tuple[list[Tensor], set[str], dict[str, int]]:
    """Run a picture through the whole classifier.

    Returns:
        the maps of `indices`; names of the parameters that have a part in them; the part, 0 to 4,
        of each parameter that any map of the network depends on.
    """
    parameters = dict(model.named_parameters())
    try:
        with torch.enable_grad():
            every = model.eval().forward_intermediates(_picture(side), intermediates_only=True)
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        reason = one_line(error, 200)
        raise InputError(
            f"backbone {name} does not run on 3-channel images of {side} px ({reason}): choose "
            "another network, or check backbone.args"
        ) from error
    maps = [every[i] for i in indices]
    reached, trunk = _reached(maps, parameters), _reached(every, parameters)
    return [x.detach() for x in maps], reached, _parts(model, trunk)


def _picture(side: int) -> Tensor:
    """[1, 3, side, side] float32, without drawing a random number."""
    return torch.linspace(-2, 2, 3 * side * side).sin().reshape(1, 3, side, side)


def _reached(maps: Sequence[Tensor], parameters: Mapping[str, Tensor]) -> set[str]:
    """Names of the parameters that the maps depend on."""
    total = torch.stack([x.sum() for x in maps]).sum()
    gradients = torch.autograd.grad(
        total, list(parameters.values()), retain_graph=True, allow_unused=True
    )
    return {key for key, x in zip(parameters, gradients, strict=True) if x is not None}


def _parts(model: Any, trunk: set[str]) -> dict[str, int]:
    """Empty where timm does not know the stages."""
    names = [(key, key) for key, _ in model.named_parameters() if key in trunk]
    try:
        groups = group_with_matcher(iter(names), model.group_matcher(coarse=True))
    except (AttributeError, AssertionError):  # RDNet has none of whole stages
        return {}
    last = max(1, len(groups) - 1)
    return {
        key: math.floor((PARTS - 1) * i / last + 0.5) for i, keys in groups.items() for key in keys
    }


def _without_head(
    model: Any, indices: list[int], maps: Sequence[Tensor], reached: set[str], side: int
) -> Any:
    """Remove what stands behind the last map, and see that the maps are still the same."""
    name = model.pretrained_cfg["architecture"]
    whole = model.state_dict(keep_vars=True)
    if hasattr(model, "prune_intermediate_layers"):
        model.prune_intermediate_layers(indices, prune_norm=True)
    left = model.state_dict(keep_vars=True)
    strange = [key for key, tensor in left.items() if tensor is not whole.get(key)]
    lost = sorted(reached - left.keys())
    difference = ", ".join((strange + lost)[:3]) or _difference(model, indices, maps, side)
    if difference:
        raise InputError(
            f"backbone {name} has other feature maps than its classifier ({difference}): choose "
            "another network, and report this"
        )
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key in reached)  # of a branch that leads to no wanted map
    return model


def _difference(model: Any, indices: list[int], maps: Sequence[Tensor], side: int) -> str:
    with torch.enable_grad():  # as before: without, attention uses another kernel
        again = model.forward_intermediates(
            _picture(side), indices=indices, intermediates_only=True
        )
    same = len(again) == len(maps) and all(map(torch.equal, again, maps))
    return "" if same else "other values"


def _check_strides(strides: Sequence[int], maps: Sequence[Tensor], side: int, name: str) -> None:
    for stride, x in zip(strides, maps, strict=True):
        size = tuple(x.shape[-2:])
        if x.dim() != 4 or size != (math.ceil(side / stride),) * 2:
            raise InputError(
                f"backbone {name} makes a map of {' x '.join(map(str, size))} from {side} px, "
                f"which is not of the stride {stride} that timm states: choose another network"
            )
