"""Paths in settings, before torch is imported and anything is measured: what is read must be there,
and what is written may replace an earlier result of the same kind, and no other file."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssld.common.errors import InputError

JSON_BYTES = 2**26
"""Larger files are no results of ours."""


def check_file(setting: str, path: str | Path | None, kind: str) -> None:
    """
    Args:
        setting: what names the file, for messages.
        kind: a key of KINDS.

    Raises:
        InputError: a folder, or a file of another kind, is there; or there is no folder to write to
            (exports and bundles make theirs).
    """
    if not path:
        return
    file, known = Path(path), KINDS[kind]
    makes_folder = kind in ("onnx", "torchscript", "bundle")
    if file.is_dir() or not (makes_folder or file.parent.is_dir()):
        raise InputError(f"{setting} is {path}: name a file in a folder that exists")
    if file.parent.is_dir() and not os.access(file.parent, os.W_OK | os.X_OK):
        raise InputError(f"{setting} is {path}: {file.parent} is not writable; give another folder")
    if not file.exists():
        return
    try:
        earlier = known(file)
    except (OSError, ValueError, RecursionError, tarfile.TarError, zipfile.BadZipFile):
        earlier = False
    if not earlier:
        raise InputError(
            f"{setting} is {path}, which exists and is no earlier result of this command: give "
            "another name, or move it away"
        )


def _json(*keys: str) -> Callable[[Path], bool]:
    def known(file: Path) -> bool:
        if file.stat().st_size > JSON_BYTES:
            return False
        result = json.loads(file.read_text(encoding="utf-8"))
        return isinstance(result, dict) and result.keys() >= set(keys)

    return known


def _page(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(64).startswith(b'<!doctype html><html lang="en"><meta charset')


def _onnx(file: Path) -> bool:
    """By the facts that an export keeps in the file's metadata."""
    import onnx
    from google.protobuf.message import DecodeError

    with contextlib.suppress(DecodeError):
        result = onnx.load_model(str(file), load_external_data=False)
        return {entry.key for entry in result.metadata_props} >= {"mean", "std"}
    return False


def _torchscript(file: Path) -> bool:
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/extra/facts.json") for name in archive.namelist())


def _bundle(file: Path) -> bool:
    with tarfile.open(file, "r:") as archive:
        names = archive.getnames()
    return any(name.count("/") == 1 and name.endswith("/ssld.json") for name in names)


def _embeddings(file: Path) -> bool:
    import pyarrow.parquet as pq  # a tenth of a second, which help does without

    return pq.read_schema(file).names == ["source", "sample_id", "features"]


KINDS: dict[str, Callable[[Path], bool]] = {
    "evaluation": _json("model", "images", "top1"),
    "plan": _json("problems", "rates"),
    "bench": _json("loader", "teacher", "student", "ratio"),
    "comparison": _json("differences", "runs"),
    "page": _page,
    "onnx": _onnx,
    "torchscript": _torchscript,
    "bundle": _bundle,
    "embeddings": _embeddings,
}


SOURCES = ("labeled", "unlabeled", "train", "generated", "val")


def check_inputs(config: Any, where: str = "") -> None:
    """Plain local paths of sources and weights.

    Args:
        config: settings of any command.
        where: they stand, for messages.

    Raises:
        InputError: there is nothing, or an empty folder.
    """
    for name, path in [*_sources(config), *_weights(config)]:
        check_path(f"{where}: {name}" if where else name, path)


def _sources(config: Any) -> list[tuple[str, str]]:
    data = getattr(config, "data", None)
    if isinstance(data, str | list):  # of `ssld evaluate`
        return [("data", path) for path in _listed(data)]
    named = [(f"data.{x}", path) for x in SOURCES for path in _listed(getattr(data, x, None))]
    classified = getattr(getattr(config, "classification", None), "train", None)
    return [*named, *(("classification.train", path) for path in _listed(classified))]


def _weights(config: Any) -> list[tuple[str, str]]:
    groups = [("teacher", getattr(config, "teacher", None))]
    groups += [("teachers", teacher) for teacher in getattr(config, "teachers", [])]
    if not hasattr(config, "run"):  # a later stage's student is another stage's, perhaps to come
        groups.append(("student", getattr(config, "student", None)))
    groups.append(("backbone", getattr(config, "backbone", None)))
    results = [(f"{name}.checkpoint", getattr(x, "checkpoint", None)) for name, x in groups]
    results += [(name, getattr(config, name, None)) for name in ("init", "labels")]
    return [(name, path) for name, path in results if path]


def _listed(paths: str | list[str] | None) -> list[str]:
    return [paths] if isinstance(paths, str) else paths or []


def check_path(name: str, given: str) -> None:
    """
    Raises:
        InputError: there is nothing, or an empty folder, where a source or weights should be.
    """
    path = given
    if not os.path.exists(given):
        path = os.path.expanduser(given.partition("::")[0])  # annotations::images, folder::split
    if not path or "://" in path:
        return
    if os.path.isdir(path):
        with os.scandir(path) as entries:  # of millions one is enough
            if next(entries, None) is None:
                raise InputError(f"{name}: {path} is an empty folder")
    elif not os.path.exists(path) and not re.search(r"[?{*[]", path):  # no pattern
        raise InputError(f"{name}: {path}: no such file or folder; check the path")
