"""The trained student as a folder for plain timm: `create_model("local-dir:<out>/student")`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf

from ssld.network import Network
from ssld.run import checkpoint
from ssld.run.folder import cannot_write, replace_folder


def export(network: Network, folder: Path, facts: dict[str, Any]) -> None:
    """Write `config.json` (architecture, arguments, preprocessing, label names) and
    `model.safetensors`, replacing what was there in one step.

    Raises:
        InputError: it cannot be written; what was there is untouched.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _write(network, temporary, facts)
        replace_folder(temporary, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise cannot_write(folder, error) from error


def _write(network: Network, folder: Path, facts: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    size = network.input_size
    preprocessing = {
        "input_size": (3, size, size),
        "mean": network.mean,
        "std": network.std,
        "crop_pct": network.crop_pct,
        "interpolation": network.interpolation,
    }
    labels = {"label_names": network.label_names} if network.label_names else {}
    save_config_for_hf(
        network.model,
        str(folder / "config.json"),
        model_config=labels,
        data_config=preprocessing,
    )
    metadata = {"format": "pt", "teacher_sha256": str(facts.get("teacher_sha256") or "")}
    save_file(checkpoint.tensors(network.model), folder / "model.safetensors", metadata)
