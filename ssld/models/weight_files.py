"""From what a user names as weights to an architecture, tensors and what is said of them; all that
a stranger's file says was checked by `zoo/described.py` before."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import timm
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ssld.common.errors import InputError
from ssld.common.recorded import check_recorded
from zoo.described import Described, read_config, read_header
from zoo.prefixes import unwrapped

HUB = re.compile(r"hf[-_]hub:([^@]+)(?:@(.+))?")


def read_checkpoint(
    role: str, checkpoint: str, arch: str | None
) -> tuple[str, dict[str, Tensor], Described]:
    """A safetensors file, an exported model folder or a run folder.

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
            check_recorded(file, f"{role}.checkpoint")
            described = read_config(folder / "config.json")
        else:
            _require_safetensors(role, path)
            file = path
            check_recorded(file, f"{role}.checkpoint")
            described = _header(path)
        known = described.architecture
        if arch and known and arch.split(".")[0] != known.split(".")[0]:
            raise InputError(
                f"{role}.arch is {arch!r} but {role}.checkpoint {checkpoint} holds a {known!r}; "
                f"leave {role}.arch out or give the checkpoint of a {arch}"
            )
        if not (arch or known):
            raise InputError(f"{role}.arch is missing: {checkpoint} does not name its architecture")
        return str(arch or known), _tensors(file), described


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


def _require_safetensors(role: str, path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{role}.checkpoint {path}: no such file or folder")
    if path.suffix != ".safetensors":
        raise InputError(
            f"{role}.checkpoint {path}: only safetensors files and run folders are read; "
            "convert pickled weights with safetensors.torch.save_file first"
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


def check_loaded(role: str, arch: str, weights: Mapping[str, Tensor]) -> None:
    """Look at what timm has loaded itself.

    Raises:
        InputError: a tensor holds NaN or infinity.
    """
    with _telling(role):
        _require_finite(weights, arch)


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
