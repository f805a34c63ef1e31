"""Published weights as a release folder that timm loads (`zoo/release.py` has the layout)."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models._hub import save_config_for_hf
from torch import Tensor

from zoo.catalog import Entry, find, paddle_classes
from zoo.errors import InputError
from zoo.licences import combine
from zoo.paddle.convert import classes_in, convert, entry_of
from zoo.paddle.pickle_file import read_pdparams
from zoo.release import seal, sha256_of
from zoo.weights import weights_file


def convert_file(file: Path, paddle_class: str, out: Path) -> dict[str, Any]:
    """Write a `.pdparams` file as a release folder; returns the facts in its `ssld.json`.

    Raises:
        InputError: refused or unfitting weights, an `out` that is not empty; nothing is written.
    """
    entry_of(paddle_class)
    paddle = read_pdparams(file)
    weights = convert(paddle, paddle_class, str(file))
    entry = _meant(file, paddle_class, classes_in(paddle))
    provenance = {"file": file.name, "sha256": sha256_of(file), "class": paddle_class}
    return _write(entry, weights, classes_in(paddle), out, provenance)


def release_of(name: str, out: Path, weights_dir: str | Path | None = None) -> dict[str, Any]:
    """Write weights of the catalogue as a release folder, fetched where they are not cached.

    Raises:
        InputError: unknown name, weights that cannot be had, an `out` that is not empty.
    """
    entry = find(name)
    weights = load_file(weights_file(entry, folder=weights_dir))
    provenance = {"file": entry.file, "url": entry.url, "class": entry.paddle_class}
    return _write(entry, weights, 1000, out, provenance)


def _meant(file: Path, paddle_class: str, classes: int) -> Entry:
    """The entry with that file name, else the class's first."""
    entries = paddle_classes()[paddle_class]
    named = [entry for entry in entries if entry.file == file.name and classes == 1000]
    return (named or entries)[0]


def _write(
    entry: Entry, weights: Mapping[str, Tensor], classes: int, out: Path, provenance: dict[str, Any]
) -> dict[str, Any]:
    from zoo.card import write_card

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty; give another folder, or empty it first")
    facts = _facts(entry, weights, classes, provenance)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}.") as parent:
        folder = Path(parent) / "release"
        folder.mkdir()
        with torch.device("meta"):
            model = timm.create_model(entry.name, num_classes=classes)
        save_config_for_hf(model, str(folder / "config.json"))
        save_file(dict(weights), folder / "model.safetensors", {"format": "pt"})
        write_card(folder, facts)
        seal(folder, facts)
        if out.exists():
            out.rmdir()
        shutil.move(folder, out)
    return facts


def _facts(
    entry: Entry, weights: Mapping[str, Tensor], classes: int, provenance: dict[str, Any]
) -> dict[str, Any]:
    """What `ssld.json` says; accuracy only where the file is the published one by its name."""
    published = provenance["file"] == entry.file and classes == 1000
    metrics = [
        {
            "name": name,
            "value": round(value / 100, 6),
            "dataset": "ImageNet-1k val",
            "source": entry.source,
        }
        for name, value in (("top1", entry.top1), ("top5", entry.top5))
        if published and value is not None
    ]
    notes = {"notes": entry.notes} if published and entry.notes else {}
    teacher = entry.teacher or "the teacher, which is not published"
    counters = ("running_mean", "running_var", "num_batches_tracked")
    parameters = sum(t.numel() for k, t in weights.items() if not k.endswith(counters))
    return {
        "name": entry.name if published else entry.arch_name,
        "kind": "converted",
        "registered": entry.arch_name,
        "architecture": entry.architecture,
        "model_args": entry.args,
        "parameters_m": round(parameters / 1e6, 3),
        "input_size": entry.input_size,
        "license": combine(entry.license, [(teacher, entry.teacher_license)]),
        "provenance": {**provenance, "by": entry.provenance, **notes},
        "teacher": {"name": entry.teacher, "license": entry.teacher_license},
        "metrics": metrics,
    }
