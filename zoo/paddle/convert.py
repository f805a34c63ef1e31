"""Paddle weights of a named class as a state dict of timm's, strictly, and the class of a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial

import timm
import torch
from torch import Tensor, nn

from zoo.catalog import Entry, paddle_classes
from zoo.errors import InputError, did_you_mean, one_line
from zoo.paddle import mobilenets, resnets
from zoo.paddle.rename import DoesNotFit, Weights

# The first whose name begins the class.
RULES: tuple[tuple[str, Callable[[Weights, nn.Module], Weights]], ...] = (
    ("MobileNetV1", mobilenets.mobilenet_v1),
    ("MobileNetV2", mobilenets.mobilenet_v2),
    ("MobileNetV3", mobilenets.mobilenet_v3),
    ("PPLCNetV2", mobilenets.lcnet_v2),
    ("PPLCNet", mobilenets.lcnet),
    ("GhostNet", mobilenets.ghostnet),
    ("ResNet", resnets.resnet_vd),
    ("Res2Net", resnets.res2net_vd),
    ("HRNet", resnets.hrnet),
    ("SE_HRNet", resnets.hrnet),
    ("PPHGNetV2", resnets.hgnet_v2),
    ("PPHGNet_base", resnets.hgnet_base),
    ("PPHGNet", resnets.hgnet),
)
_CLASSIFIERS = ("fc.weight", "out.weight", "fc_1.weight")


def entry_of(paddle_class: str) -> Entry:
    """The catalogue's first entry of a Paddle class.

    Raises:
        InputError: the class is not in the catalogue.
    """
    known = paddle_classes()
    paddle_class = paddle_class.removesuffix("_ssld")
    if paddle_class not in known:
        hint = did_you_mean(paddle_class, known, most=3, cutoff=0.5)
        hint = hint or f"; known: {', '.join(known)}"
        raise InputError(f"there is no rule for the Paddle class {paddle_class!r}{hint}")
    return known[paddle_class][0]


def convert(paddle: Mapping[str, Tensor], paddle_class: str, where: str) -> Weights:
    """State dict of timm's, every tensor used and every parameter filled.

    Args:
        paddle: tensors of a `.pdparams` file (`zoo/paddle/pickle_file.py`).
        where: the file's name, for messages.

    Raises:
        InputError: unknown class, or weights of another one (naming it where it is known).
    """
    entry = entry_of(paddle_class)
    try:
        weights = _fitted(paddle, entry)
        _require_finite(weights, where)
        return weights
    except DoesNotFit as error:
        right = recognise(paddle, but=entry.paddle_class)
        hint = (
            f"its shapes are those of {right}: give `--class {right}`"
            if right
            else "its shapes fit no class of the catalogue"
        )
        raise InputError(f"{where} does not fit {paddle_class} ({error}); {hint}") from error


def recognise(paddle: Mapping[str, Tensor], but: str = "") -> str | None:
    """The Paddle class whose names and shapes these are, None where it is none of the catalogue."""
    shapes = {name: tensor.to("meta") for name, tensor in paddle.items()}
    for name, entries in paddle_classes().items():
        if name == but:
            continue
        try:
            _fitted(shapes, entries[0])
        except DoesNotFit:
            continue
        return name
    return None


def classes_in(paddle: Mapping[str, Tensor]) -> int:
    """Width of the classifier (Paddle's linear weights are [in, out]); 1000 where there is none."""
    classifiers = [paddle[n] for n in _CLASSIFIERS if n in paddle and paddle[n].ndim == 2]
    return int(classifiers[0].shape[-1]) if classifiers else 1000


def check(weights: Mapping[str, Tensor], entry: Entry, where: str) -> None:
    """Whether weights in timm's names are those of the entry's architecture, none missing.

    Raises:
        InputError: naming the first that is missing, too many or of another shape.
    """
    try:
        _require_fit(dict(weights), _on_meta(entry.name, 1000))
    except DoesNotFit as error:
        raise InputError(f"{where} does not fit {entry.name} ({error})") from error
    _require_finite(weights, where)


def _require_finite(weights: Mapping[str, Tensor], where: str) -> None:
    for name, tensor in weights.items():
        if tensor.device.type != "meta" and not torch.isfinite(tensor).all():
            raise InputError(f"{where}: what is to be {name!r} is not finite; fetch it anew")


def _fitted(paddle: Mapping[str, Tensor], entry: Entry) -> Weights:
    rule = next(rule for start, rule in RULES if entry.paddle_class.startswith(start))
    model = _on_meta(entry.name, classes_in(paddle))
    try:
        weights = rule(dict(paddle), model)
    except (RuntimeError, IndexError, AttributeError, KeyError) as error:  # shapes of anything
        raise DoesNotFit(one_line(error, 200)) from error
    _require_fit(weights, model)
    counter = partial(torch.zeros, (), dtype=torch.int64)  # each its own memory: safetensors asks
    return {k: weights[k].contiguous() if k in weights else counter() for k in model.state_dict()}


@cache
def _on_meta(name: str, classes: int) -> nn.Module:
    """The architecture's names and shapes, without memory."""
    with torch.device("meta"):
        return timm.create_model(name, num_classes=classes)


def _require_fit(weights: Mapping[str, Tensor], model: nn.Module) -> None:
    expected = model.state_dict()
    counters = {k for k in expected if k.endswith("num_batches_tracked")}
    for name in sorted(expected.keys() - weights.keys() - counters):
        raise DoesNotFit(f"nothing fills {name!r}")
    for name in sorted(weights.keys() - expected.keys()):
        raise DoesNotFit(f"there is no place for what would be {name!r}")
    for name, tensor in weights.items():
        if tensor.is_floating_point() != expected[name].is_floating_point():
            raise DoesNotFit(f"{name!r} is {tensor.dtype}")
        if tensor.shape != expected[name].shape:
            shape, wanted = tuple(tensor.shape), tuple(expected[name].shape)
            raise DoesNotFit(f"{name!r} is {shape} instead of {wanted}")
