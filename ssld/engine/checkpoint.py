"""Training state on disk: written to a temporary folder, synced, renamed; checked when read. And
the trained network as a folder for plain timm: `create_model("local-dir:<out>/student")`.

The teacher is not in it (its sha256 is). There is no random state either: what is random in a step
follows from the seed and the step's number.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from ssld.common.errors import InputError, one_line
from ssld.common.files import cannot_write, read_object, reading
from ssld.engine.overwrite import remove, replace_folder
from ssld.models.classifier import Classifier, ImageModel
from zoo.release import NOT_OURS, save_weights, sha256_of

REMOVE_IT = "remove this checkpoint, and --resume goes on from the one before"
_STEP = re.compile(r"step-\d{8,}")


def save(
    folder: Path,
    step: int,
    *,
    networks: dict[str, nn.Module],
    optimizer: dict[str, Any],
    state: dict[str, Any],
    keep: int,
    best: int | None = None,
) -> Path:
    """Write `folder/step-00000123` and delete all but the `keep` latest and step `best`.

    Args:
        networks: saved as `<name>.safetensors` each.
        optimizer: a state dict of tensors and numbers.
        state: anything that JSON holds.

    Raises:
        InputError: it cannot be written; the earlier checkpoints are untouched.
    """
    final = at(folder, step)
    temporary = folder / f".{final.name}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, network in networks.items():
            save_file(tensors(network), temporary / f"{name}.safetensors")
        torch.save(optimizer, temporary / "optimizer.pt")
        (temporary / "state.json").write_text(json.dumps({"step": step, **state}, indent=2))
        digests = {path.name: sha256_of(path) for path in sorted(temporary.iterdir())}
        (temporary / "manifest.json").write_text(json.dumps(digests, indent=2))
        for path in [*temporary.iterdir(), temporary]:
            _sync(path)
        replace_folder(temporary, final, _under(final))
        _sync(folder)
    except (OSError, SafetensorError, RuntimeError) as error:  # RuntimeError: torch.save's writer
        shutil.rmtree(temporary, ignore_errors=True)
        whole = all_in(folder)
        raise InputError(
            f"checkpoint {final} cannot be written ({_reason(error, folder)}); "
            f"{f'the last good one is {whole[-1].name}' if whole else 'there is none yet'}: "
            "free space or mend the folder, then go on with --resume"
        ) from error
    for old in all_in(folder)[:-keep]:
        if old != at(folder, best if best is not None else -1):
            remove(old, _under(old))
    return final


def set_aside_after(folder: Path, step: int) -> None:
    """Rename the checkpoints after `step`, which a resume from `step` has found damaged, so that
    they do not count as the latest."""
    for path in all_in(folder):
        if path > at(folder, step):
            aside = path.with_name(f"damaged-{path.name}")
            replace_folder(path, aside, _under(aside))


def at(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is or will be."""
    return folder / f"step-{step:08d}"


def tensors(network: nn.Module) -> dict[str, Tensor]:
    """A state dict as safetensors wants it: on the CPU, contiguous, nothing shared."""
    return {k: v.detach().cpu().contiguous().clone() for k, v in network.state_dict().items()}


def latest(folder: Path) -> Path | None:
    """The newest checkpoint whose files all have the recorded sha256, None where there is none;
    damaged ones are named on stderr.

    Raises:
        InputError: there are some, but all are damaged.
    """
    checkpoints = all_in(folder)
    for path in reversed(checkpoints):
        problem = damage(path)
        if problem is None:
            return path
        print(f"warning: checkpoint {path} is damaged ({problem}) and not used", file=sys.stderr)
    if checkpoints:
        raise InputError(
            f"all {len(checkpoints)} checkpoints in {folder} are damaged: put a copy back, or "
            "start anew with --overwrite or another `out`"
        )
    return None


def load(path: Path, networks: dict[str, nn.Module]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fill `networks` from a checkpoint; returns its optimizer state, on the CPU, and its `state`.

    Raises:
        InputError: the checkpoint is of another network, or not what was written.
    """
    for name, network in networks.items():
        load_network(path, name, network)
    with reading(path / "optimizer.pt", REMOVE_IT, RuntimeError):  # torch's own reader raises it
        optimizer = torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True)
        if not isinstance(optimizer, dict):
            raise ValueError("no state of an optimizer")
    return optimizer, read_state(path)


def load_network(path: Path, name: str, network: nn.Module) -> None:
    """Fill one network from a checkpoint.

    Raises:
        InputError: the checkpoint is of another network, or not whole.
    """
    try:
        network.load_state_dict(load_file(path / f"{name}.safetensors"))
    except (RuntimeError, OSError, SafetensorError) as error:
        raise InputError(
            f"{path} does not fit the {name}: {' '.join(str(error).split())}"
        ) from error


def read_state(path: Path) -> dict[str, Any]:
    """The `state` that a checkpoint was saved with, and its `step`.

    Raises:
        InputError: it is not what was written.
    """
    state = read_object(path / "state.json", REMOVE_IT)
    if type(state.get("step")) is not int:
        raise InputError(f"{path / 'state.json'} is damaged (it has no step); {REMOVE_IT}")
    return state


def all_in(folder: Path) -> list[Path]:
    """Checkpoints, oldest first; not what a user has called `step-00001000 before the change`."""
    return sorted(path for path in folder.glob("step-*") if _STEP.fullmatch(path.name))


def _under(path: Path) -> str:
    return f"checkpoints/{path.name}"


def _reason(error: Exception, folder: Path) -> str:
    # torch.save and safetensors bury the cause; a full disk is the one that matters.
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    with contextlib.suppress(OSError):
        if shutil.disk_usage(folder).free < 2**20:
            return os.strerror(errno.ENOSPC)
    return one_line(error, 200)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, by its manifest; None for a whole one."""
    try:
        digests = json.loads((path / "manifest.json").read_text())
        if not isinstance(digests, dict) or not {"optimizer.pt", "state.json"} <= digests.keys():
            return "manifest.json is not whole"
        if any(Path(name).name != name or "\0" in name for name in digests):
            return "manifest.json names other places"
        wrong = [name for name, digest in digests.items() if sha256_of(path / name) != digest]
    except OSError as error:
        return f"{Path(error.filename or path).name}: {error.strerror}"
    except (ValueError, RecursionError) as error:
        return f"manifest.json: {error}"
    return f"{wrong[0]} has another sha256" if wrong else None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    weights = tensors(network.model)
    save_weights(weights, folder / "model.safetensors", {"step": str(step)})
