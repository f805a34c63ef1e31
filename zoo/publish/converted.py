"""Published weights as a release folder that timm loads (`zoo/release.py` has the layout)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import timm
import torch
from safetensors.torch import load_file
from timm.models._hub import save_config_for_hf
from torch import Tensor

from zoo.catalog import Entry, catalog, find
from zoo.licences import combine
from zoo.paddle.convert import classes_in, convert, entry_of
from zoo.paddle.pickle_file import read_pdparams
from zoo.publish.card import write_card
from zoo.release import new_release, save_weights, seal, sha256_of
from zoo.weights import weights_file


def convert_file(file: Path, paddle_class: str, out: Path) -> dict[str, Any]:
    """Write a `.pdparams` file as a release folder; returns the facts in its `ssld.json`.

    Raises:
        InputError: refused or unfitting weights, an `out` that is not empty; nothing is written.
    """
    entry = entry_of(paddle_class)
    paddle = read_pdparams(file)
    weights = convert(paddle, paddle_class, str(file))
    classes = classes_in(paddle)
    provenance = {"file": file.name, "sha256": sha256_of(file), "class": entry.paddle_class}
    same = [e for e in catalog().values() if e.paddle_class == entry.paddle_class]
    known = [e for e in same if e.file == file.name]
    by_path = [e for e in known if file.resolve().as_posix().endswith(urlsplit(str(e.url)).path)]
    published = (by_path or known) if classes == 1000 else []
    return _write(entry, weights, classes, out, provenance, published)


def release_of(name: str, out: Path, weights_dir: str | Path | None = None) -> dict[str, Any]:
    """Write weights of the catalogue as a release folder, fetched where they are not cached.

    Raises:
        InputError: unknown name, weights that cannot be had, an `out` that is not empty.
    """
    entry = find(name)
    weights = load_file(weights_file(entry, folder=weights_dir))
    provenance = {"file": entry.file, "url": entry.url, "class": entry.paddle_class}
    return _write(entry, weights, 1000, out, provenance, [entry])


def _write(
    entry: Entry,
    weights: Mapping[str, Tensor],
    classes: int,
    out: Path,
    provenance: dict[str, Any],
    published: Sequence[Entry],
) -> dict[str, Any]:
    facts = _facts(entry, weights, provenance, published)
    with new_release(out, str(out)) as folder:
        with torch.device("meta"):
            model = timm.create_model(entry.name, num_classes=classes)
        license = facts["license"]["license"]
        kind = {"pretrained_cfg": {"license": license, "num_classes": classes}}
        save_config_for_hf(model, str(folder / "config.json"), model_config=kind)
        save_weights(weights, folder / "model.safetensors")
        write_card(folder, facts)
        seal(folder, facts)
    return facts


def _facts(
    entry: Entry,
    weights: Mapping[str, Tensor],
    provenance: dict[str, Any],
    published: Sequence[Entry],
) -> dict[str, Any]:
    """What `ssld.json` says.

    Args:
        published: entries of the catalogue that the file is by its name. Their teacher and licence
            hold where they agree, accuracy only for a single one, and as somebody else's words: no
            checksum was ever published. A file of another name says nothing of its origin.
    """
    one = published[0] if len(published) == 1 else None
    origins = {(e.teacher, e.teacher_license, e.license, e.provenance) for e in published}
    teacher, terms, license, by = origins.pop() if len(origins) == 1 else (None, None, None, None)
    metrics = [
        {
            "name": name,
            "value": round(value / 100, 6),
            "dataset": "ImageNet-1k val",
            "source": f"{one.source} (for a file of this name; not measured on these weights)",
        }
        for name, value in ((("top1", one.top1), ("top5", one.top5)) if one else ())
        if one and value is not None
    ]
    whose = teacher or ("the teacher, which is not published" if published else "their makers")
    counters = ("running_mean", "running_var", "num_batches_tracked")
    parameters = sum(t.numel() for k, t in weights.items() if not k.endswith(counters))
    return {
        "name": one.name if one else entry.arch_name,
        "kind": "converted",
        "registered": entry.arch_name,
        "architecture": entry.architecture,
        "model_args": entry.args,
        "parameters_m": round(parameters / 1e6, 3),
        "macs_m": entry.macs_m,
        "input_size": entry.input_size,
        "license": combine(license, [(whose, terms)]),
        "provenance": {
            **provenance,
            **({"by": by} if by else {}),
            **({"notes": one.notes} if one and one.notes else {}),
        },
        **({"teacher": {"name": teacher, "license": terms}} if teacher else {}),
        "metrics": metrics,
        **({"data": {"curation": by}} if by else {}),
    }
