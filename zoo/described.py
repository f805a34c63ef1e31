"""What an exported folder, or a weights file's header, says of its network, checked in one place.

timm builds whatever it is told to: a `checkpoint_path` among the arguments is a file that it opens,
a `crop_pct` of 0.0001 an image of two million pixels a side, a `std` of 0 a network that sees NaN.
So nothing foreign reaches it, or `ssld`, that did not pass `read_config` or `read_header`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from zoo.errors import InputError, one_line

CONFIG_BYTES = 1 << 26
MAX_SIDE_PX = 2048
MIN_CROP_PCT, MAX_CROP_PCT = 0.1, 2.0
"""timm's smallest and largest are 0.8 and 1.15."""
MAX_CLASSES = 10_000_000
MAX_ARGUMENT = 8192
"""Of one number among the arguments: a width, a depth, a size in px (timm's largest are 1,536,
500 and 1,024)."""
MAX_VALUES, TEXT_CHARACTERS = 256, 1 << 16
INTERPOLATIONS = ("bilinear", "bicubic")
"""What evaluation does as timm does it; all weights that timm knows want one of them."""
CROP_MODES = ("center", "squash", "border")
FACTORY = {
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args"),
    *("checkpoint_path", "cache_dir", "scriptable", "exportable", "no_jit", "features_only"),
    *("out_indices", "device", "dtype", "model_name", "pretrained_strict", "feature_cfg"),
}
"""Arguments of `timm.create_model` that are no property of a network: files, devices, sources."""
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
Rule = tuple[Callable[[Any], bool], str]


@dataclass(frozen=True)
class Described:
    """`architecture` is timm's name (None where a header has none), `args` its arguments, `cfg`
    entries of timm's `pretrained_cfg`, all of them of the types and ranges that those have."""

    architecture: str | None
    args: dict[str, Any]
    cfg: dict[str, Any]


def read_config(file: Path) -> Described:
    """What a `config.json` says, in timm's layout or its older one without `pretrained_cfg`.

    Raises:
        InputError: it cannot be read, or the first entry that is nothing that a network can have.
    """
    content = _read(file)
    cfg = content.get("pretrained_cfg", {k: v for k, v in content.items() if k != "model_args"})
    if not isinstance(cfg, dict):
        raise _wrong(file, "pretrained_cfg", cfg, "an object with input_size, mean, std, ...")
    cfg = dict(cfg)
    if "labels" in cfg and "pretrained_cfg" not in content:
        cfg["label_names"] = cfg.pop("labels")
    cfg |= {k: content[k] for k in ("num_classes", "label_names") if k in content}
    architecture = content.get("architecture")
    described = _checked(file, architecture, content.get("model_args", {}), cfg)
    counts = content.get("num_classes"), described.args.get("num_classes")
    if None not in counts and counts[0] != counts[1]:  # timm would make the classifier at random
        raise _wrong(file, "model_args.num_classes", counts[1], f"num_classes, {counts[0]}, again")
    return described


def read_header(file: Path, header: Mapping[str, str]) -> Described:
    """What the metadata of a safetensors file says: architecture, model_args, mean, std,
    input_size, interpolation, crop_mode, crop_pct. Numbers may have brackets around them.

    Raises:
        InputError: naming the entry that is none.
    """
    cfg: dict[str, Any] = {k: header[k] for k in ("interpolation", "crop_mode") if k in header}
    for key, kind in (("mean", float), ("std", float), ("input_size", int), ("crop_pct", float)):
        if key in header:
            try:
                cfg[key] = [kind(x) for x in header[key].strip("[]() ").split(",")]
            except ValueError as error:
                raise _wrong(file, key, header[key], RULES[key][1]) from error
    if "input_size" in cfg and len(cfg["input_size"]) == 1:
        cfg["input_size"] = [3, *cfg["input_size"] * 2]
    if len(cfg.get("crop_pct", ())) == 1:
        cfg["crop_pct"] = cfg["crop_pct"][0]
    try:
        args = json.loads(header.get("model_args", "{}"))
    except (ValueError, RecursionError) as error:
        raise _wrong(file, "model_args", header["model_args"], "JSON of named arguments") from error
    if "architecture" not in header:
        return Described(None, *_checked_values(file, args, cfg))
    return _checked(file, header["architecture"], args, cfg)


def _read(file: Path) -> dict[str, Any]:
    try:
        if not file.is_file() or file.stat().st_size > CONFIG_BYTES:
            raise OSError("it is no file of less than 64 MB")
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{file} cannot be read ({one_line(error, 200)}): export the model again"
        ) from error
    if not isinstance(content, dict):
        raise _wrong(file, "the whole", content, "an object with architecture and pretrained_cfg")
    return content


def _checked(file: Path, architecture: Any, args: Any, cfg: dict[str, Any]) -> Described:
    if not isinstance(architecture, str) or not NAME.fullmatch(architecture):
        raise _wrong(file, "architecture", architecture, "the name of an architecture of timm")
    return Described(architecture, *_checked_values(file, args, cfg))


def _checked_values(
    file: Path, args: Any, cfg: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    args = checked_arguments(file, args)
    for key, value in cfg.items():
        check, what = RULES.get(key, (None, ""))
        if check and value is not None and not check(value):
            raise _wrong(file, key, value, what)
    return args, {k: tuple(v) if isinstance(v, list) else v for k, v in cfg.items()}


def checked_arguments(file: Path, args: Any) -> dict[str, Any]:
    """Arguments of a network that a stranger's file states.

    Raises:
        InputError: one of them is none, but a file or a source, or beyond all bounds.
    """
    if args is None:
        args = {}
    if not isinstance(args, dict):
        raise _wrong(file, "model_args", args, "an object of named arguments")
    for key, value in args.items():
        if not KEY.fullmatch(key) or key in FACTORY:
            raise InputError(
                f"{file}: model_args names {key[:64]!r}, which is no argument of a network; take "
                "it out, or export the model again"
            )
        most = MAX_CLASSES if key == "num_classes" else MAX_ARGUMENT
        if not _is_argument(value, most):
            what = f"text, true, false, or numbers of at most {most:,}"
            raise _wrong(file, f"model_args.{key}", value, what)
    return dict(args)


def _wrong(file: Path, key: str, value: Any, what: str) -> InputError:
    try:
        shown = json.dumps(value, ensure_ascii=True)
    except RecursionError:
        shown = f"a {type(value).__name__} of many levels"
    shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
    return InputError(f"{file}: {key} is {shown}, but must be {what}; export the model again")


def _is_number(value: Any, low: float = -(2**63), high: float = 2**63) -> bool:
    """NaN is none, and neither is true."""
    return type(value) in (int, float) and low <= value <= high


def _is_argument(value: Any, most: int, depth: int = 3) -> bool:
    if isinstance(value, list | dict):
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        fits = depth > 0 and len(parts) <= MAX_VALUES
        return fits and all(_is_argument(x, most, depth - 1) for x in parts)
    if isinstance(value, str):
        return len(value) <= MAX_VALUES and _is_text(value)
    return value is None or isinstance(value, bool) or _is_number(value, -most, most)


def _is_text(value: Any) -> bool:
    """Half a surrogate pair, which JSON can hold, could be written to no file afterwards."""
    fits = isinstance(value, str) and len(value) <= TEXT_CHARACTERS
    return fits and not any("\ud800" <= x <= "\udfff" for x in value)


def _is_list(value: Any, check: Callable[[Any], bool], length: int | None = None) -> bool:
    return isinstance(value, list) and length in (None, len(value)) and all(map(check, value))


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_SIDE_PX


def _is_size(value: Any) -> bool:
    return _is_list(value, _is_side, 3) and value[0] == 3


_SIZE: Rule = (_is_size, f"[3, height, width] with sides of 1 to {MAX_SIDE_PX} px")
_CROP: Rule = (
    lambda x: _is_number(x, MIN_CROP_PCT, MAX_CROP_PCT),
    f"a share of the image, {MIN_CROP_PCT} to {MAX_CROP_PCT}",
)
_TEXT: Rule = (_is_text, "text")
_TEXTS: Rule = (lambda x: _is_text(x) or _is_list(x, _is_text), "text, or a list of texts")
_BOOL: Rule = (lambda x: isinstance(x, bool), "true or false")
RULES: dict[str, Rule] = {
    "mean": (
        lambda x: _is_list(x, lambda y: _is_number(y, -255, 255), 3),
        "three finite numbers, of pixel values in [0, 1]",
    ),
    "std": (
        lambda x: _is_list(x, lambda y: _is_number(y, 1e-6, 255), 3),
        "three finite numbers above 0, of pixel values in [0, 1]",
    ),
    "crop_mode": (lambda x: x in CROP_MODES, f"one of {', '.join(CROP_MODES)}"),
    "interpolation": (lambda x: x in INTERPOLATIONS, f"one of {', '.join(INTERPOLATIONS)}"),
    "num_classes": (
        lambda x: type(x) is int and 0 <= x <= MAX_CLASSES,
        f"a number of classes, 0 to {MAX_CLASSES:,}",
    ),
    "label_names": (lambda x: _is_list(x, _is_text), "a list of texts, one for each class"),
    "label_descriptions": (lambda x: isinstance(x, dict), "an object of texts"),
    "state_dict": (lambda _: False, "left out"),
    "pool_size": (lambda x: _is_list(x, _is_side), "a list of sizes"),
    **dict.fromkeys(("input_size", "test_input_size", "min_input_size"), _SIZE),
    **dict.fromkeys(("crop_pct", "test_crop_pct"), _CROP),
    **dict.fromkeys(("fixed_input_size", "custom_load"), _BOOL),
    **dict.fromkeys(("first_conv", "classifier", "paper_ids", "notes", "url"), _TEXTS),
    **dict.fromkeys(
        ("license", "tag", "architecture", "source", "file", "hf_hub_id", "origin_url",
         "hf_hub_filename", "paper_name", "description"),
        _TEXT,
    ),
}  # fmt: skip


Value = TypeVar("Value")

WRAPPERS = (
    *("module", "_orig_mod", "state_dict", "model_state_dict", "model", "net", "network"),
    *("student", "Student", "teacher", "Teacher", "ema", "ema_model", "model_ema"),
    *("state_dict_ema", "ema_state_dict", "averaged"),
)
_COUNTERS = ("n_averaged", "num_updates")  # of torch's AveragedModel


def unwrapped(weights: Mapping[str, Value], where: str) -> dict[str, Value]:
    """The same tensors by the names that the network itself has. A prefix goes where all have it;
    what is inside of names, `_orig_mod` of a part that was compiled by itself, goes everywhere.

    Raises:
        InputError: there are several networks in it, two tensors come to the same name.
    """
    tensors = dict(weights)
    while True:
        tensors = {name: x for name, x in tensors.items() if name not in _COUNTERS}
        first = {name.partition(".")[0] for name in tensors}
        if not first or not first <= set(WRAPPERS) or any("." not in name for name in tensors):
            break
        if len(first) > 1:
            raise InputError(
                f"{where} holds {len(first)} networks ({', '.join(sorted(first))}): write a file "
                "with the tensors of the one that you want"
            )
        tensors = {name.partition(".")[2]: x for name, x in tensors.items()}
    renamed = {name.replace("._orig_mod.", "."): x for name, x in tensors.items()}
    if len(renamed) < len(tensors):
        raise InputError(f"{where} has two tensors of the same name but for '_orig_mod.'")
    return renamed
