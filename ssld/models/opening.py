"""From what a user names, an architecture or weights, to a `Classifier`; all that a stranger's file
says was checked by `zoo/described.py` before."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ssld.common.errors import InputError, did_you_mean, one_line
from ssld.common.recorded import check_recorded
from ssld.models.class_titles import TRAINED_ON
from ssld.models.classifier import Classifier, TimmModel
from ssld.models.pickled import ENDINGS, classifiers, of_network, read_pickled
from zoo.described import Described, read_config, read_header, unwrapped
from zoo.errors import printable
from zoo.fetch import FAILURES, unreachable, watched

HUB = re.compile(r"hf[-_]hub:([^@]+)(?:@(.+))?")
TRIED_PX = 512
"""Larger images are not tried when a network is opened, for their cost."""
REASON_CHARACTERS = 300
"""timm may name every tensor that does not fit."""
STATED = ("mean", "std", "input_size", "crop_pct", "crop_mode", "interpolation", "label_names")
"""What the weights' own words win over timm's for the architecture's name in."""
OF_TORCHVISION = (
    {"features.0.0.weight", "features.1.0.block.0.0.weight", "classifier.1.weight"},
    {"class_token", "conv_proj.weight", "encoder.pos_embedding"},
)
"""Names that tell torchvision's EfficientNet and VisionTransformer from all others; its ResNet has
timm's."""


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
        checkpoint: a safetensors file, what torch.save wrote, an exported model folder, or a run
            folder.
        num_classes: by default what the checkpoint, else timm says; where the checkpoint has
            another number, its classifier is replaced by a fresh one.
        input_size: by default `img_size` of `args`, else what the weights say.

    Raises:
        InputError: unknown architecture, unreachable or unfitting weights.
    """
    arguments = dict(args or {})
    if checkpoint:
        arch, weights, described = read_checkpoint(role, checkpoint, arch, arguments)
        where = f"{role}.checkpoint {checkpoint}"
        arguments = {**described.args, **arguments}
        trained_classes = arguments.get("num_classes") or classes_in(arch, weights)
        if trained_classes is not None:
            arguments["num_classes"] = trained_classes
        trial = _without_memory(role, arch, arguments)
        if trial is not None:
            check_fit(trial.state_dict(), weights, where)
        model = _create(role, arch, False, arguments)
        load_strictly(model, weights, where)
        stated = {k: described.cfg[k] for k in STATED if described.cfg.get(k) is not None}
        model.pretrained_cfg.update(stated)
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
    size = input_size or _side((args or {}).get("img_size"))
    network = Classifier(model, input_size=size, mean=mean, std=std)
    published = model.pretrained_cfg.get("num_classes") == model.num_classes
    tag = str(model.pretrained_cfg.get("tag") or "") if pretrained and published else ""
    network.of_imagenet = TRAINED_ON.search(tag) is not None
    given = {*arguments, *getattr(model, "_model_args", {})} - {"num_classes"}
    if given and network.input_size <= TRIED_PX:
        network.cost()  # arguments can be accepted and make no classifier
    return network


def _side(size: object) -> int | None:
    """Of the square that timm's `img_size` asks for; None where it asks for none."""
    sides = set(size) if isinstance(size, list | tuple) else {size}
    side = sides.pop() if len(sides) == 1 else None
    return side if isinstance(side, int) else None


def read_checkpoint(
    role: str, checkpoint: str, arch: str | None, args: Mapping[str, Any]
) -> tuple[str, dict[str, Tensor], Described]:
    """A safetensors file, what torch.save wrote, an exported model folder or a run folder.

    Raises:
        InputError: there is none, it is damaged or of another architecture, it says what no network
            can have, its weights are not finite.
    """
    path = Path(checkpoint)
    with _telling(role):
        if path.is_dir():
            folder = path / "student" if (path / "student").is_dir() else path
            _require_export(role, folder)
            file = folder / "model.safetensors"
        else:
            _require_weights(role, path)
            file = path
        check_recorded(file, f"{role}.checkpoint")
        weights = None
        if file != path:
            described = read_config(file.parent / "config.json")
        elif is_pickled(file):
            weights, described = read_pickled(role, file, arch)
        else:
            described = _header(file)
        known = described.architecture
        if arch and known and arch.split(".")[0] != known.split(".")[0]:
            raise InputError(
                f"{role}.arch is {arch!r} but {role}.checkpoint {checkpoint} holds a {known!r}; "
                f"leave {role}.arch out or give the checkpoint of a {arch}"
            )
        if not (arch or known):
            raise InputError(f"{role}.arch is missing: {checkpoint} does not name its architecture")
        name = str(arch or known)
        if weights is None:
            return name, _tensors(file), described
        return name, *_of_network(role, weights, name, described, args, str(file))


def is_pickled(file: Path) -> bool:
    """Whether its name is that of what torch.save wrote."""
    return file.name.lower().endswith(ENDINGS)


def is_weights(file: Path) -> bool:
    """Whether its name is that of a file of weights."""
    return file.suffix == ".safetensors" or is_pickled(file)


def _of_network(
    role: str,
    tensors: dict[str, Tensor],
    arch: str,
    described: Described,
    args: Mapping[str, Any],
    where: str,
) -> tuple[dict[str, Tensor], Described]:
    """The network's own tensors among those of a checkpoint; without a classifier among them it has
    none."""
    arguments = {**described.args, **args}
    model = _on_meta(role, arch, arguments) or _create(role, arch, False, arguments)
    weights = of_network(tensors, model, where)
    _require_finite(weights, where)
    heads = classifiers(model)
    if heads and not any(name.startswith(f"{head}.") for name in weights for head in heads):
        described = dataclasses.replace(described, args={**described.args, "num_classes": 0})
    return weights, described


def check_named(role: str, arch: str, *, weights: bool) -> Described | None:
    """What is said of what `local-dir:` and `hf-hub:` name, before timm sees it; their weights are
    checked, too, where they are wanted.

    Raises:
        InputError: there is no such folder, it says what no network can have, or its weights are
            not those that were recorded.
    """
    hub = HUB.fullmatch(arch)
    with _telling(role):
        if arch.startswith("local-dir:"):
            folder = Path(arch.removeprefix("local-dir:"))
            _require_export(role, folder)
            if weights:
                check_recorded(folder / "model.safetensors", f"{role}.arch")
            return read_config(folder / "config.json")
        if hub:
            from huggingface_hub import hf_hub_download

            return read_config(Path(hf_hub_download(hub[1], "config.json", revision=hub[2])))
    return None


def classes_in(arch: str, weights: Mapping[str, Tensor]) -> int | None:
    """Number of classes that a checkpoint's classifier has, found by timm's name for it."""
    if not timm.is_model(arch.split(".")[0]):
        return None
    classifier = timm.get_pretrained_cfg(arch.split(".")[0], allow_unregistered=True)
    name = (classifier.classifier if classifier else None) or "fc"
    names = [name] if isinstance(name, str) else list(name)
    heads = [weights[f"{n}.weight"] for n in names if f"{n}.weight" in weights]
    return int(heads[0].shape[0]) if heads and heads[0].ndim else None


def _require_export(role: str, folder: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise InputError(
                f"{role}: {folder} has no {name}; give a folder exported by ssld or timm, "
                "or a run folder with a finished student/"
            )


def _require_weights(role: str, path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{role}.checkpoint {path}: no such file or folder")
    if not is_weights(path):
        raise InputError(
            f"{role}.checkpoint {path}: only safetensors files, what torch.save wrote "
            f"({', '.join(ENDINGS[:-1])}) and run folders are read"
        )


@contextmanager
def _telling(role: str) -> Iterator[None]:
    """Errors name the role, once."""
    try:
        yield
    except InputError as error:
        if str(error).startswith(role):
            raise
        raise InputError(f"{role}: {error}") from error


def _header(path: Path) -> Described:
    try:
        with safe_open(path, "pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is not a safetensors file ({error}); fetch it anew") from error
    return read_header(path, metadata)


def _require_finite(weights: Mapping[str, Tensor], where: str) -> None:
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(
                f"{where}: the model diverged, {name} is not finite; give other weights"
            )


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        weights = unwrapped(load_file(file), str(file))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise InputError(f"{file} cannot be read ({error}); fetch it anew") from error
    _require_finite(weights, str(file))
    return weights


def _without_memory(role: str, arch: str | None, arguments: dict[str, Any]) -> TimmModel | None:
    """A network on the meta device: a stranger's arguments can ask for any width. None without
    arguments, and of what needs memory: building it in earnest says what is wrong."""
    return _on_meta(role, arch, arguments) if arguments.keys() - {"num_classes"} else None


def _on_meta(role: str, arch: str | None, arguments: dict[str, Any]) -> TimmModel | None:
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        try:
            return _create(role, arch, False, arguments)
        except InputError:
            return None


def _require_memory(role: str, folder: Path, described: Described, args: Mapping[str, Any]) -> None:
    """Of what timm loads by itself: not far more parameters than bytes of weights."""
    model = _without_memory(role, described.architecture, {**described.args, **args})
    if model is None:
        return
    size = (folder / "model.safetensors").stat().st_size
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
                f"{role}.arch {arch!r} is a file: give it as checkpoint, and the name of its "
                "architecture here"
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
        advice = f"check {role}.args"
        if pretrained or ":" in arch:
            advice = f"give weights on disk as {role}.checkpoint, or check the name and the network"
        reason = unreachable(error) or printable(one_line(error, REASON_CHARACTERS))
        raise InputError(f"{role}.arch {arch!r} cannot be built ({reason}); {advice}") from error
    if pretrained:
        with _telling(role):
            _require_finite(model.state_dict(), arch)
    return cast(TimmModel, model)


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
        InputError: naming missing, unexpected and misshapen tensors, or whose network it is.
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
    if any(names <= set(unexpected) for names in OF_TORCHVISION):
        raise InputError(
            f"{where} is torchvision's own network, whose tensors have other names than timm's "
            f"({', '.join(unexpected[:2])}, ...): give weights of timm's network, or set "
            "`pretrained` in place of the checkpoint"
        )
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
