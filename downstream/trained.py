"""A trained detector or segmenter as a folder: what it is in `config.json`, its weights in
`model.safetensors`. A run folder has one in `model/`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from ssld.errors import InputError
from ssld.network import ImageModel, load_strictly
from ssld.run import checkpoint
from ssld.run.export import replace_export
from ssld.run.recorded import check_recorded
from zoo.release import save_weights

if TYPE_CHECKING:
    from torch import nn

FOLDER = "model"


def save(
    network: ImageModel, folder: Path, step: int, *, task: str, head: dict[str, Any], view: dict
) -> str:
    """Write a network, replacing what was there in one step; returns the sha256 of its weights.

    Args:
        task: detection or segmentation.
        head: the settings of the network on the backbone.
        view: how images are made for it.

    Raises:
        InputError: it cannot be written; what was there is untouched.
    """
    from downstream.backbone import describe

    content = {
        "task": task,
        "head": head,
        "backbone": describe(network.model.backbone),  # type: ignore[arg-type]
        "class_names": network.label_names,
        "view": view,
    }

    def write(temporary: Path) -> None:
        text = json.dumps(content, indent=2) + "\n"
        (temporary / "config.json").write_text(text, encoding="utf-8")
        weights = checkpoint.tensors(network.model)
        save_weights(weights, temporary / "model.safetensors", {"step": str(step)})

    return replace_export(folder, write)


def read_description(path: str) -> tuple[Path, dict[str, Any]]:
    """The exported folder of a run, or of a copy of it, and what its config.json says.

    Raises:
        InputError: it is no such folder, or damaged.
    """
    folder = Path(path) / FOLDER if (Path(path) / FOLDER).is_dir() else Path(path)
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"{path} holds no trained detector or segmenter ({error.filename}: {error.strerror}): "
            "give the run folder of a downstream.detection or downstream.segmentation run that "
            "has been evaluated, or a copy of its `model` folder"
        ) from error
    except ValueError as error:
        raise InputError(f"{folder / 'config.json'} is damaged ({error})") from error
    if not isinstance(content, dict) or "task" not in content:
        raise InputError(f"{folder / 'config.json'} is of no detector or segmenter")
    return folder, content


def load(
    folder: Path, content: dict[str, Any], build: Callable[[Any, int], nn.Module]
) -> nn.Module:
    """The network that a folder holds, in eval mode.

    Args:
        build: (backbone, number of classes) -> network with random weights.

    Raises:
        InputError: weights that cannot be read or do not fit.
    """
    from downstream.backbone import rebuild

    model = build(rebuild(content["backbone"]), len(content["class_names"]))
    file = folder / "model.safetensors"
    try:
        check_recorded(file)
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read ({error})") from error
    load_strictly(model, weights, str(file))
    return model.eval()
