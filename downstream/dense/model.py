"""A detector or segmenter on a backbone, and the folder that holds a trained one: what it is in
`config.json`, its weights in `model.safetensors`. A run folder has one in `model/`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from downstream.backbone.backbone import Backbone, describe, open_backbone, rebuild
from downstream.backbone.config import BackboneConfig
from downstream.backbone.weights import create
from downstream.dense.config import MAX_SIDE_PX
from downstream.dense.networks import NetworkEntry
from ssld.common.errors import InputError
from ssld.common.files import read_object, reading
from ssld.common.recorded import check_recorded
from ssld.common.settings_file import shortened
from ssld.engine import checkpoint
from ssld.engine.checkpoint import replace_export
from ssld.models.classifier import ImageModel, as_images_lie
from ssld.models.opening import load_strictly
from zoo.described import NAME, checked_arguments
from zoo.release import save_weights

Built = TypeVar("Built", bound=nn.Module)
FOLDER = "model"
TASKS = ("detection", "segmentation")
AGAIN = "export the model again, or take another copy of it"


@contextmanager
def running_statistics_kept(network: nn.Module) -> Iterator[None]:
    """Batch norm that is not frozen takes the statistics of the images that it sees, and keeps its
    running ones, with which the network is evaluated, as they are."""
    norms = [x for x in network.modules() if isinstance(x, _BatchNorm)]
    momenta = [x.momentum for x in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


class DenseModel(ImageModel):
    """A detector or segmenter; its backbone says the normalisation.

    Args:
        model: has a `backbone`.
        label_names: of the classes, by number.
    """

    preset: str
    """Of the backbone's learning rates, a key of `downstream.backbone.config.PRESETS`."""

    def __init__(self, model: nn.Module, label_names: Sequence[str]) -> None:
        backbone = cast(Backbone, model.backbone)
        super().__init__(model, mean=backbone.mean, std=backbone.std, label_names=label_names)

    @property
    def backbone(self) -> Backbone:
        return cast(Backbone, self.model.backbone)

    def pooled(self, images: Tensor) -> Tensor:
        """The backbone's last map of whole images, averaged over places. Batch norm that is not
        frozen takes the statistics of these images, and keeps its running ones as they are.

        Args:
            images: uint8 [b, h, w, 3].

        Returns:
            float32 [b, channels].
        """
        with running_statistics_kept(self.backbone):
            maps = self.backbone(self.normalise(images.permute(0, 3, 1, 2).float()))
        return maps[-1].float().mean((2, 3))

    def lr_scales(self) -> dict[str, float]:
        scales = self.backbone.lr_scales(self.preset)
        return {f"model.backbone.{name}": scale for name, scale in scales.items()}


def backbone_for(entry: NetworkEntry, config: BackboneConfig) -> Backbone:
    """The backbone with the maps that a network wants.

    Raises:
        InputError: it cannot be had, or lacks the maps.
    """
    try:
        return open_backbone(config, strides=entry.strides, output_stride=entry.output_stride)
    except InputError:
        if not entry.undilated:
            raise
        return open_backbone(config)


def save(
    network: DenseModel,
    folder: Path,
    step: int,
    *,
    task: str,
    head: dict[str, Any],
    view: dict,
    keypoints: dict[str, Any] | None = None,
) -> str:
    """Write a network, replacing what was there in one step; returns the sha256 of its weights.

    Args:
        task: detection or segmentation.
        head: the settings of the network on the backbone.
        view: how images are made for it.
        keypoints: what they are, of a detector that finds them.

    Raises:
        InputError: it cannot be written; what was there is untouched.
    """
    content = {
        "task": task,
        "head": head,
        "backbone": describe(network.backbone),
        "class_names": network.label_names,
        "view": view,
    }
    if keypoints is not None:
        content["keypoints"] = keypoints

    def write(temporary: Path) -> None:
        text = json.dumps(content, indent=2) + "\n"
        (temporary / "config.json").write_text(text, encoding="utf-8")
        weights = checkpoint.tensors(network.model)
        save_weights(weights, temporary / "model.safetensors", {"step": str(step)})

    return replace_export(folder, write)


def run_folder(path: str) -> Path:
    """`path`, or the student's run where it is a folder of `ssld selftrain`, as that of a method of
    `ssld methods` may be."""
    student = Path(path) / "student"  # of a classifier it is an exported folder, without settings
    return student if (student / "config.yaml").is_file() else Path(path)


def read_description(path: str) -> tuple[Path, dict[str, Any]]:
    """The exported folder of a run (see `run_folder`), or of a copy of it, and what its config.json
    says.

    Raises:
        InputError: it is no such folder, or damaged.
    """
    folder = run_folder(path)
    folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    file = folder / "config.json"
    try:
        content = read_object(file, AGAIN)
    except OSError as error:
        inside = sorted(Path(path).glob(f"**/{FOLDER}/config.json"))
        runs = ", ".join(str(x.parent.parent) for x in inside[:3])
        raise InputError(
            f"{path} holds no trained detector or segmenter ({error.filename}: {error.strerror}): "
            "give the run folder of a downstream.detection or downstream.segmentation run that "
            f"has been evaluated, or a copy of its `model` folder{f', such as {runs}' * bool(runs)}"
        ) from error
    if "task" not in content:
        raise InputError(f"{file} is of no detector or segmenter")
    with reading(file, AGAIN):
        _check(content)
        _check_backbone(content["backbone"], file)
    return folder, content


def _check_backbone(backbone: dict[str, Any], file: Path) -> None:
    """A stranger's file may name neither a hub nor a file that would be opened."""
    if not NAME.fullmatch(backbone["architecture"]):
        raise ValueError(f"backbone.architecture is {shortened(backbone['architecture'])}")
    checked_arguments(file, dict(backbone["args"]))
    if len([float(x) for name in ("mean", "std") for x in backbone[name]]) != 6:
        raise ValueError("mean and std are not three numbers each")


def _check(content: dict[str, Any]) -> None:
    """Raises what `reading` takes for damage where something is not as `save` writes it. `view` is
    checked where the network is opened."""
    head, names, view = content["head"], content["class_names"], content["view"]
    if not isinstance(names, list) or not names or not all(isinstance(x, str) for x in names):
        raise TypeError(f"class_names is {names!r}")
    if not isinstance(head["name"], str) or not isinstance(head.get("args", {}), dict):
        raise TypeError(f"head is {head!r}")
    backbone = content["backbone"]
    for side in (backbone["output_stride"], *backbone["wanted"], backbone["frozen_stages"]):
        if type(side) is not int:
            raise TypeError(f"the backbone is {backbone!r}")
    if content["task"] not in TASKS:
        raise ValueError(f"task is {content['task']!r}")
    if not isinstance(view, dict):
        raise TypeError(f"view is {view!r}")


def reading_view(folder: Path) -> AbstractContextManager[None]:
    """Whatever fails inside means that config.json is damaged."""
    return reading(folder / "config.json", AGAIN)


def require_sides(sides: Iterable[object]) -> None:
    """Raise TypeError unless all are px that a network may see."""
    for side in sides:
        if type(side) is not int or side > MAX_SIDE_PX:
            raise TypeError(f"view has a side of {shortened(side)} px")


def load(folder: Path, content: dict[str, Any], build: Callable[[Backbone, int], Built]) -> Built:
    """The network that a folder holds, in eval mode.

    Args:
        build: (backbone, number of classes) -> network with random weights.

    Raises:
        InputError: weights that cannot be read or do not fit.
    """
    weights, file = _weights(folder)
    with reading(folder / "config.json", AGAIN, RuntimeError):
        _require_memory(content["backbone"], sum(x.nbytes for x in weights.values()))
        model = build(rebuild(content["backbone"]), len(content["class_names"]))
    load_strictly(model, weights, str(file))
    as_images_lie(model)  # as in its run: other kernels round otherwise, near ties change places
    return model.eval()


def load_weights(model: nn.Module, folder: Path, left_out: Sequence[str] = ()) -> None:
    """Fill a network with the weights that a folder holds.

    Args:
        left_out: names of tensors that stay as they are.

    Raises:
        InputError: they cannot be read or do not fit.
    """
    weights, file = _weights(folder)
    own = model.state_dict()
    load_strictly(model, {**weights, **{name: own[name] for name in left_out}}, str(file))


def _weights(folder: Path) -> tuple[dict[str, Tensor], Path]:
    file = folder / "model.safetensors"
    try:
        check_recorded(file)
        return load_file(file), file
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read ({error})") from error


def _require_memory(backbone: dict[str, Any], size: int) -> None:
    """A stranger's arguments can ask for any width: so the backbone is built without memory first.

    Args:
        size: bytes of all weights.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        try:
            model = create(backbone["architecture"], backbone["args"])
        except InputError:  # some need memory: building it in earnest says what is wrong
            return
    needed = sum(x.numel() for x in model.parameters())
    if needed > size:  # of 4 bytes each, and a classifier that is not kept
        raise ValueError(f"a backbone of {needed:,} parameters, but {size:,} bytes of weights")
