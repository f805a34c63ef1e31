"""A timm classifier together with how it wants to see images.

A `Classifier` takes uint8 views and resizes and normalises them on the device for itself, so that a
wrong normalisation between teacher and student cannot be expressed. Whatever arrives is
`[b, h, w, 3]` uint8; what leaves is `[b, classes]` logits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ssld.common.errors import InputError, did_you_mean, one_line
from ssld.models.weight_files import HUB, check_loaded, check_named, classes_in, read_checkpoint
from zoo.described import Described  # which registers the distilled backbones in timm, too
from zoo.errors import printable
from zoo.fetch.hub_errors import FAILURES
from zoo.fetch.watch import watched

LARGEST = 1e30
"""Of a mean, and of a deviation's inverse: what is computed from pixels stays finite in float32."""
TRIED_PX = 512
"""Larger images are not tried when a network is opened, for their cost."""


class TimmModel(nn.Module):
    """What timm's classifiers have beyond a module: for type checkers, never made."""

    num_classes: int
    head_hidden_size: int
    pretrained_cfg: dict[str, Any]

    def forward_features(self, x: Tensor) -> Tensor:
        """[b, 3, h, w] -> the last feature map or tokens."""
        ...

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """-> [b, classes] logits, or the pooled [b, d] before them."""
        ...

    def reset_classifier(self, num_classes: int) -> None: ...


class ImageModel(nn.Module):
    """A model and how it wants pixels normalised; `model` is what is saved and exported.

    Args:
        mean, std: normalisation of pixel values in [0, 1].
        label_names: of its classes, in order, where they are known.
    """

    _scale: Tensor
    _shift: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        label_names: Sequence[str] | None,
    ) -> None:
        super().__init__()
        self.model = model
        self.mean = tuple(float(x) for x in mean)
        self.std = tuple(float(x) for x in std)
        numbers = all(abs(x) < LARGEST for x in self.mean + self.std)  # NaN is not
        if not numbers or min(self.std) <= 1 / LARGEST:
            raise InputError(
                f"normalisation by mean {self.mean} and std {self.std} makes no numbers of pixels: "
                "give finite ones, and std above 0"
            )
        self.label_names = list(label_names) if label_names else None
        scale, shift = 1 / (255 * torch.tensor(self.std)), -torch.tensor(self.mean)
        self.register_buffer("_scale", scale, persistent=False)  # [3]
        self.register_buffer("_shift", shift / torch.tensor(self.std), persistent=False)

    def normalise(self, pixels: Tensor) -> Tensor:
        """[b, 3, h, w] in 0..255 -> float32, of zero mean and unit deviation where trained."""
        return pixels * self._scale.view(1, 3, 1, 1) + self._shift.view(1, 3, 1, 1)

    def lr_scales(self) -> dict[str, float]:
        """{parameter name: factor on its learning rate}; 1 where it is not named."""
        return {}


class Classifier(ImageModel):
    """Images in, logits out.

    Args:
        model: a timm classifier (`TimmModel`); its `pretrained_cfg` supplies what is not given.
        input_size: side in px of the square that the model sees.
        mean, std: normalisation of pixel values in [0, 1].
    """

    model: TimmModel

    def __init__(
        self,
        model: nn.Module,
        *,
        input_size: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        cfg = dict(cast(TimmModel, model).pretrained_cfg or {})
        super().__init__(
            model,
            mean=mean or cfg.get("mean", IMAGENET_DEFAULT_MEAN),
            std=std or cfg.get("std", IMAGENET_DEFAULT_STD),
            label_names=cfg.get("label_names"),
        )
        self.input_size = int(input_size or cfg.get("input_size", (3, 224, 224))[-1])
        self.crop_pct = float(cfg.get("crop_pct") or 0.875)
        self.crop_mode = str(cfg.get("crop_mode") or "center")
        self.interpolation = str(cfg.get("interpolation") or "bilinear")
        self._trained: list[str] | None = None

    @property
    def num_classes(self) -> int:
        return int(self.model.num_classes)

    @property
    def feature_size(self) -> int:
        """d of `features`: what a projection of them takes."""
        return int(self.model.head_hidden_size)

    @property
    def architecture(self) -> str | None:
        """timm's name of the model."""
        return self.model.pretrained_cfg.get("architecture")

    def require_classes(self, role: str) -> None:
        """Raises InputError where the model has no classifier: timm's features alone."""
        if not self.num_classes:
            raise InputError(
                f"{role} has no classifier (num_classes is 0): it makes features, not predictions; "
                f"take weights with a classifier, or train one on it first (`ssld supervised`)"
            )

    def freeze_but(self, names: Sequence[str]) -> None:
        """Train nothing but these modules of the model; the others stay in eval mode for good,
        batch statistics and dropout included."""
        self._trained = list(names)
        self.requires_grad_(False)
        for name in names:
            self.model.get_submodule(name).requires_grad_(True)
        self.train(self.training)

    @property
    def frozen_on_purpose(self) -> bool:
        """Whether `freeze_but` was called."""
        return self._trained is not None

    def train(self, mode: bool = True) -> Classifier:
        if self._trained is None:
            return super().train(mode)
        super().train(False)
        for name in self._trained:  # by name: synchronised batch norm replaces modules
            self.model.get_submodule(name).train(mode)
        return self

    def preprocess(self, images: Tensor) -> Tensor:
        """[b, h, w, 3] uint8 -> [b, 3, input_size, input_size] float32, normalised.

        Another size than `input_size` is resized bilinearly, with a low-pass filter when shrinking.
        """
        x = images.permute(0, 3, 1, 2).float()  # channels last in memory
        if x.shape[-2:] != (self.input_size, self.input_size):
            size = (self.input_size, self.input_size)
            x = F.interpolate(x, size, mode="bilinear", antialias=True)
        return self.normalise(x)

    def forward(
        self, images: Tensor, with_features: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """[b, h, w, 3] uint8 -> [b, classes] logits.

        Args:
            with_features: return (logits, features [b, feature_size]) of one forward pass, as
                `features` has them. It is an argument of `forward` so that a loss on features
                trains under DistributedDataParallel, whose hooks hang on this call.
        """
        if not with_features:
            return self.model(self.preprocess(images))
        x = self.model.forward_features(self.preprocess(images))
        return self.model.forward_head(x), self.model.forward_head(x, pre_logits=True)

    def features(self, images: Tensor) -> Tensor:
        """[b, h, w, 3] uint8 -> [b, feature_size]: pooled, what the last layer makes logits of."""
        x = self.model.forward_features(self.preprocess(images))
        return self.model.forward_head(x, pre_logits=True)

    def sha256(self) -> str:
        """Digest of all weights: names, dtypes, shapes and bytes."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            tensor = tensor.detach().cpu().contiguous()
            digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def cost(self) -> tuple[float, float]:
        """(parameters in millions, multiply-adds per image in millions).

        Raises:
            InputError: the model does not run on images of `input_size`.
        """
        parameters = sum(p.numel() for p in self.model.parameters())
        device = next(self.model.parameters()).device
        images = torch.zeros(2, 3, self.input_size, self.input_size, device=device)
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                logits = self.model(images)  # two: batch statistics need more than one value
            classes = int(getattr(self.model, "num_classes", 0))
            if classes and tuple(logits.shape) != (len(images), classes):
                raise ValueError(f"its answer is {tuple(logits.shape)}")
        except (AssertionError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"{self.architecture} does not run on images of "
                f"{self.input_size} px ({error}); set another size or `args`"
            ) from error
        finally:
            self.model.train(training)
        return parameters / 1e6, counter.get_total_flops() / 2 / len(images) / 1e6


def open_network(
    role: str,
    *,
    arch: str | None,
    args: Mapping[str, Any] | None = None,
    pretrained: bool = False,
    checkpoint: str | None = None,
    num_classes: int | None = None,
    input_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Classifier:
    """Build a network, with `checkpoint` loaded strictly when given.

    Args:
        role: `teacher`, `student` or `model`: the settings group that messages speak of.
        checkpoint: a safetensors file, an exported model folder, or a run folder.
        num_classes: by default what the checkpoint, else timm says; where the checkpoint has
            another number, its classifier is replaced by a fresh one.

    Raises:
        InputError: unknown architecture, unreachable or unfitting weights.
    """
    arguments = dict(args or {})
    if checkpoint:
        arch, weights, described = read_checkpoint(role, checkpoint, arch)
        where = f"{role}.checkpoint {checkpoint}"
        arguments = {**described.args, **arguments}
        trained_classes = arguments.get("num_classes") or classes_in(arch, weights)
        if trained_classes is not None:
            arguments["num_classes"] = trained_classes
        _try_without_memory(role, arch, arguments, weights, where)
        model = _create(role, arch, False, arguments)
        load_strictly(model, weights, where)
        _merge_metadata(model, described.cfg)
        _check_labels(model, where)
        if num_classes is not None and num_classes != model.num_classes:
            model.reset_classifier(num_classes)
            model.pretrained_cfg.pop("label_names", None)
    else:
        if num_classes is not None:
            arguments["num_classes"] = num_classes
        model = _create(role, arch, pretrained, arguments)
        if "num_classes" in arguments:  # perhaps of a new classifier
            if len(model.pretrained_cfg.get("label_names") or ()) != model.num_classes:
                model.pretrained_cfg.pop("label_names", None)
        _check_labels(model, f"{role}.arch {arch}")
    network = Classifier(model, input_size=input_size, mean=mean, std=std)
    given = {*arguments, *getattr(model, "_model_args", {})} - {"num_classes"}
    if given and network.input_size <= TRIED_PX:
        network.cost()  # arguments can be accepted and make no classifier
    return network


def _try_without_memory(
    role: str, arch: str, arguments: dict[str, Any], weights: Mapping[str, Tensor], where: str
) -> None:
    """A stranger's arguments can ask for any width: so the network is built on the meta device
    first, and its shapes compared, where there are arguments."""
    if not arguments.keys() - {"num_classes"}:
        return
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        try:
            expected = _create(role, arch, False, arguments).state_dict()
        except InputError:  # some need memory: building it in earnest says what is wrong
            return
    check_fit(expected, weights, where)


def _require_memory(role: str, folder: Path, described: Described, args: Mapping[str, Any]) -> None:
    """The same for what timm loads by itself: not far more parameters than bytes of weights."""
    arguments = {**described.args, **args}
    if not arguments.keys() - {"num_classes"}:
        return
    size = (folder / "model.safetensors").stat().st_size
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        try:
            model = _create(role, described.architecture, False, arguments)
        except InputError:
            return
    parameters = sum(x.numel() for x in model.parameters())
    if parameters > 2 * size + 10_000_000:  # of a new classifier, perhaps
        raise InputError(
            f"{role}: {folder / 'config.json'} asks for a network of {parameters:,} parameters, "
            f"but model.safetensors has {size:,} bytes; export the model again"
        )


def _create(role: str, arch: str | None, pretrained: bool, args: dict[str, Any]) -> TimmModel:
    if not arch:
        raise InputError(f"{role}.arch is missing: name a timm architecture, for example resnet50d")
    if ":" not in arch and not timm.is_model(arch.split(".")[0]):
        if Path(arch).is_file():
            raise InputError(
                f"{role}.arch {arch!r} is a file: give it as checkpoint (safetensors alone are "
                "read), and the name of its architecture here"
            )
        hint = did_you_mean(arch, timm.list_models(), most=3) or "; see timm.list_models()"
        raise InputError(f"{role}.arch {arch!r} is not a timm architecture{hint}")
    try:
        with watched(arch) if pretrained or HUB.match(arch) else nullcontext():
            described = check_named(role, arch, weights=pretrained)
            if described and arch.startswith("local-dir:"):
                _require_memory(role, Path(arch.removeprefix("local-dir:")), described, args)
            model = timm.create_model(arch, pretrained=pretrained, **args)
    except FAILURES as error:
        if isinstance(error, InputError) and str(error).startswith(role):
            raise
        reason = printable(one_line(error, 300))
        advice = (
            f"give weights on disk as {role}.checkpoint, or check the name and the network"
            if pretrained or ":" in arch
            else f"check {role}.args"
        )
        raise InputError(f"{role}.arch {arch!r} cannot be built ({reason}); {advice}") from error
    if pretrained:
        check_loaded(role, arch, model.state_dict())
    return cast(TimmModel, model)


def _merge_metadata(model: TimmModel, metadata: Mapping[str, Any]) -> None:
    """Let the weights' own words on preprocessing and labels win over timm's for the name."""
    wanted = ("mean", "std", "input_size", "crop_pct", "crop_mode", "interpolation", "label_names")
    model.pretrained_cfg.update({k: metadata[k] for k in wanted if metadata.get(k) is not None})


def _check_labels(model: TimmModel, where: str) -> None:
    names, classes = model.pretrained_cfg.get("label_names"), model.num_classes
    if names and len(names) != classes:
        raise InputError(
            f"{where} names {len(names)} classes, but its classifier has {classes}: mend "
            "label_names in config.json, or export the model again"
        )


def load_strictly(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Load `weights` (any float dtype) so that every tensor is used and every parameter filled.

    Raises:
        InputError: naming missing, unexpected and misshapen tensors.
    """
    expected = model.state_dict()
    check_fit(expected, weights, where)
    model.load_state_dict({k: weights.get(k, expected[k]) for k in expected})


def check_fit(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], where: str) -> None:
    """Compare names, shapes and kinds of numbers.

    Raises:
        InputError: naming missing, unexpected and misshapen tensors.
    """
    optional = {k for k in expected if k.endswith("num_batches_tracked")}
    missing = sorted(expected.keys() - weights.keys() - optional)
    unexpected = sorted(weights.keys() - expected.keys())
    shapes = [
        f"{k} {tuple(weights[k].shape)} instead of {tuple(expected[k].shape)}"
        for k in expected.keys() & weights.keys()
        if weights[k].shape != expected[k].shape
    ]
    kinds = [
        f"{k} {weights[k].dtype}"
        for k in expected.keys() & weights.keys()
        if expected[k].is_floating_point() and not weights[k].is_floating_point()
    ]
    if missing or unexpected or shapes or kinds:
        problems = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", sorted(shapes)),
                ("of no real numbers", sorted(kinds)),
            )
            if names
        ]
        raise InputError(
            f"{where} does not fit the architecture: tensors {'; '.join(problems)}; "
            "change `arch`, `args` or `num_classes` to what the weights were trained with"
        )
