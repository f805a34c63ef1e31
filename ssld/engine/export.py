"""The trained student as a folder for plain timm: `create_model("local-dir:<out>/student")`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from timm.models._hub import save_config_for_hf

from ssld.common.files import cannot_write
from ssld.engine import checkpoint
from ssld.engine.written import replace_folder
from ssld.models.classifier import Classifier, ImageModel
from zoo.release import NOT_OURS, save_weights, sha256_of


def export(network: Classifier, folder: Path, step: int) -> str:
    """Write `config.json` (architecture, arguments, preprocessing, label names) and
    `model.safetensors`; returns the sha256 of the weights.

    Raises:
        InputError: it cannot be written; what was there is untouched.
    """
    return replace_export(folder, lambda temporary: _write(network, temporary, step))


def replace_export(folder: Path, write: Callable[[Path], None]) -> str:
    """Replace an exported folder in one step by what `write` puts into a new one, its weights as
    `model.safetensors`; returns their sha256.

    Raises:
        InputError: it cannot be written; what was there is untouched.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        digest = sha256_of(temporary / "model.safetensors")
        replace_folder(temporary, folder, folder.name)
        return digest
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise cannot_write(folder, error) from error


def load_exported(folder: Path, step: int, network: ImageModel) -> bool:
    """Fill `network` from an export of that step; False where there is no such export."""
    try:
        with safe_open(folder / "model.safetensors", "pt") as file:
            if (file.metadata() or {}).get("step") != str(step):
                return False
            network.model.load_state_dict({key: file.get_tensor(key) for key in file.keys()})
    except (OSError, SafetensorError, RuntimeError):
        return False
    return True


def _write(network: Classifier, folder: Path, step: int) -> None:
    size = network.input_size
    preprocessing = {
        "input_size": (3, size, size),
        "mean": network.mean,
        "std": network.std,
        "crop_pct": network.crop_pct,
        "interpolation": network.interpolation,
    }
    labels = {"label_names": network.label_names} if network.label_names else {}
    file = folder / "config.json"
    save_config_for_hf(network.model, str(file), model_config=labels, data_config=preprocessing)
    # timm names its own weights of the architecture and their licence, which these are not.
    content = json.loads(file.read_text(encoding="utf-8"))
    for key in (*NOT_OURS, "license"):
        content["pretrained_cfg"].pop(key, None)
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    weights = checkpoint.tensors(network.model)
    save_weights(weights, folder / "model.safetensors", {"step": str(step)})
