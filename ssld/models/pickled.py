"""Weights as `torch.save` writes them: a state_dict alone, or the checkpoint of a training script.

Such a file is a pickle, and a pickle is a program. torch reads it with `weights_only`, which makes
tensors and plain values. Training scripts store more beside them (numpy's scalars, paths, the
settings of Hydra): each of these names becomes a `StandIn`, so that nothing of theirs is run and
the weights are read all the same.

Where the weights lie, by who writes the file:

    torch.save(model.state_dict()), lightly-train's    the file itself
      exported_last.pt, DeiT's and torchvision's files
    timm train.py                                      state_dict, state_dict_ema; arch, args
    torchvision's references                           model, model_ema; args
    PyTorch's examples/imagenet                        state_dict, below `module.`; arch
    Lightning                                          state_dict, below `model.`, `backbone.`, ...
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ssld.common.errors import InputError, did_you_mean
from ssld.common.files import WRONG
from zoo.described import INTERPOLATIONS, Described, read_header, unwrapped
from zoo.errors import one_line, printable

ENDINGS = (".pth", ".pt", ".ckpt", ".bin", ".pth.tar", ".pt.tar")
"""Of files that are read so; `.bin` is the hub's older one, `.pth.tar` timm's and torchvision's."""
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
"""Keys of an average of the weights, which is taken where there is one, as timm does."""
PLAIN = ("state_dict", "model", "model_state_dict", "network", "net", "weights")
NAMED_BY = ("arch", "model", "model_name", "architecture", "backbone", "encoder")
"""Where checkpoints and their settings name the architecture."""
ADVICE = "where it was trained, write the weights alone, torch.save(model.state_dict(), FILE)"


class StandIn(list):
    """Stands for whatever a checkpoint names that is neither a tensor nor a plain value."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __new__(cls, *_: Any, **__: Any) -> StandIn:
        return super().__new__(cls)

    def __setstate__(self, _: Any) -> None:
        pass

    def __hash__(self) -> int:  # type: ignore[override]  # it may be a key
        return id(self)


def read_pickled(role: str, path: Path, arch: str | None) -> tuple[dict[str, Tensor], Described]:
    """All tensors by the names that they have there, and what the file says of its network.

    Args:
        role: see `open_network`.
        arch: as given; an architecture that the file names and timm lacks is no matter then.

    Raises:
        InputError: it holds no weights, is damaged, or names an architecture that timm lacks.
    """
    content = _load(path)
    if not isinstance(content, Mapping):
        what = "a whole network, whose code would have to run" if _is_foreign(content) else "no one"
        raise InputError(f"{path} holds {what}, no named tensors; {ADVICE}")
    averages, plain = (_first(content, keys) for keys in (AVERAGES, PLAIN))
    key = averages or plain
    if key is None and _tensors(content) is None:
        several = sorted(str(k) for k, value in content.items() if _tensors(value))
        if several:
            raise InputError(f"{path} holds the weights {', '.join(several)}; {ADVICE}")
        keys = ", ".join(printable(str(x))[:40] for x in list(content)[:8]) or "nothing"
        raise InputError(f"{path} holds no weights (it has {keys}); {ADVICE}")
    if averages and plain and os.environ.get("RANK", "0") == "0":
        print(f"{role}.checkpoint {path}: the average of the weights, {averages}, is taken",
              file=sys.stderr)  # fmt: skip
    tensors = _tensors(content if key is None else content[key])
    return _uncompiled(tensors or {}, path), _described(role, path, content, arch)


def _load(path: Path) -> Any:
    try:
        is_zip = zipfile.is_zipfile(path)  # its table of contents is at the end
        if not is_zip and _begins(path) in (b"", b"PK"):
            raise InputError(f"{path} is empty or ends too early; fetch it anew")
        if is_zip:
            _check_archive(path)
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path) if is_zip else []
        names = [(StandIn, name) for name in foreign if name != "argparse.Namespace"]
        with torch.serialization.safe_globals([argparse.Namespace, *names]):
            with warnings.catch_warnings(action="ignore"):  # of the protocol of the pickle
                return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read ({one_line(error)})") from error
    except (*WRONG, RuntimeError, AssertionError) as error:
        reason = one_line(error).rpartition("WeightsUnpickler error: ")[2]
        reason = printable(re.split(" Please use | Check the doc", reason)[0])[:200]
        if "global" in reason.lower():
            raise InputError(
                f"{path} holds more than weights, and is not read for safety ({reason}); {ADVICE}"
            ) from error
        raise InputError(f"{path} is no whole file of torch.save ({reason}); fetch it anew, or "
                         f"{ADVICE}") from error  # fmt: skip


def _begins(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2)


def _check_archive(path: Path) -> None:
    """torch itself compares no checksums, and takes damaged bytes for numbers."""
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise InputError(f"{path} is a program of TorchScript, not weights; {ADVICE}")
        damaged = archive.testzip()
    if damaged:
        raise InputError(f"{path} is damaged, in {printable(damaged)}; fetch it anew")


def _is_foreign(value: Any) -> bool:
    return isinstance(value, StandIn | nn.Module)


def _first(content: Mapping[Any, Any], keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if _tensors(content.get(key)) is not None), None)


def _tensors(value: Any) -> dict[str, Tensor] | None:
    """A state_dict's tensors; None of what is none. Its `_extra_state` may be anything."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        return None
    tensors = {name: x for name, x in value.items() if isinstance(x, Tensor)}
    return tensors if 2 * len(tensors) > len(value) else None


def _uncompiled(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    renamed = {name.replace("_orig_mod.", ""): x for name, x in tensors.items()}
    if len(renamed) < len(tensors):
        raise InputError(f"{path} has two tensors of the same name but for '_orig_mod.'; {ADVICE}")
    return renamed


def _described(role: str, path: Path, content: Mapping[str, Any], arch: str | None) -> Described:
    """What timm's, torchvision's and Lightning's settings say of the network."""
    said = content.get("args", content.get("hyper_parameters"))
    said = vars(said) if isinstance(said, argparse.Namespace) else said
    said = dict(said) if isinstance(said, Mapping) else {}
    texts = [x.get(key) for x in (content, said) for key in NAMED_BY]
    names = [x.rpartition("/")[2].rpartition(":")[2] for x in texts if isinstance(x, str)]
    known = next((name for name in names if timm.is_model(name.split(".")[0])), None)
    if not (arch or known) and names:
        shown = printable(names[0])[:60]
        hint = did_you_mean(names[0], timm.list_models(), most=3)
        raise InputError(
            f"{role}.arch is missing: {path} is of {shown!r}, which is not the name of an "
            f"architecture of timm{hint}; give {role}.arch"
        )
    return read_header(path, {**_header(said), **({"architecture": known} if known else {})})


def _header(said: Mapping[str, Any]) -> dict[str, str]:
    """Settings of timm's train.py and torchvision's references, as a header has them."""
    header: dict[str, str] = {}
    for key in ("mean", "std", "input_size"):
        if isinstance(said.get(key), list | tuple) and len(said[key]) == 3:
            header[key] = ",".join(map(str, said[key]))
    side = said.get("img_size") or said.get("val_crop_size")
    if side and "input_size" not in header:
        header["input_size"] = str(side)
    if said.get("interpolation") in INTERPOLATIONS:
        header["interpolation"] = said["interpolation"]
    resize, crop = said.get("val_resize_size"), said.get("val_crop_size")
    share = crop / resize if isinstance(resize, int) and isinstance(crop, int) and resize else None
    if said.get("crop_pct") or share:
        header["crop_pct"] = str(said.get("crop_pct") or share)
    arguments = said.get("model_kwargs")
    arguments = dict(arguments) if isinstance(arguments, Mapping) else {}
    if isinstance(said.get("gp"), str):
        arguments["global_pool"] = said["gp"]
    return {**header, "model_args": json.dumps(arguments, default=str)}


def of_network(tensors: dict[str, Tensor], model: nn.Module, where: str) -> dict[str, Tensor]:
    """Those of `tensors` that belong to a network, by its own names: what is before all of them,
    `module.` or Lightning's `backbone.`, is left off, with all that is not below it (a loss, a
    metric). Names of the network's authors become timm's, where timm knows how.

    Args:
        model: of timm, with any number of classes; it may lie on the meta device.

    Raises:
        InputError: several of them belong to such networks.
    """
    heads = tuple(f"{name}." for name in classifiers(model))
    expected = model.state_dict()
    names = [x for x in expected if not x.startswith(heads or ("\0",))]
    names = [x for x in names if not x.endswith("num_batches_tracked")]
    longest = max(names, key=len, default="")
    prefixes = {x.removesuffix(longest) for x in tensors if f".{x}".endswith(f".{longest}")}
    fitting = sorted(p for p in prefixes if all(f"{p}{name}" in tensors for name in names))
    if len(fitting) > 1:
        raise InputError(
            f"{where} holds {len(fitting)} networks of this architecture "
            f"({', '.join(x.rstrip('.') or 'the file itself' for x in fitting)}): write a file "
            "with the tensors of the one that you want"
        )
    if fitting:
        start = fitting[0]
        return {x.removeprefix(start): y for x, y in tensors.items() if x.startswith(start)}
    plain = unwrapped(tensors, where)
    translated = _translated(plain, model)
    return translated if set(names) <= translated.keys() else plain


def classifiers(model: Any) -> list[str]:
    """Names of a timm network's last layers."""
    names = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    return [names] if isinstance(names, str) else list(names)


def _translated(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """By the function that timm has for files of the architecture's authors, which must not change
    what it does not rename: it would make other position embeddings of those of another size."""
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        result = translate(dict(tensors), model) if translate else {}
        same = all(result[x].shape == tensors[x].shape for x in result.keys() & tensors.keys())
    except (*WRONG, RuntimeError, AssertionError):  # it is of yet another kind
        return {}
    return dict(result) if same else {}
