"""What a command may replace where its result goes: an earlier result of the same kind, and no
other file. Checked before anything is measured."""

from __future__ import annotations

import contextlib
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

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
        found = json.loads(file.read_text(encoding="utf-8"))
        return isinstance(found, dict) and found.keys() >= set(keys)

    return known


def _page(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(64).startswith(b'<!doctype html><html lang="en"><meta charset')


def _onnx(file: Path) -> bool:
    """By the facts that an export keeps in the file's metadata."""
    import onnx
    from google.protobuf.message import DecodeError

    with contextlib.suppress(DecodeError):
        found = onnx.load_model(str(file), load_external_data=False)
        return {entry.key for entry in found.metadata_props} >= {"mean", "std"}
    return False


def _torchscript(file: Path) -> bool:
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/extra/facts.json") for name in archive.namelist())


def _bundle(file: Path) -> bool:
    with tarfile.open(file, "r:") as archive:
        names = archive.getnames()
    return any(name.count("/") == 1 and name.endswith("/ssld.json") for name in names)


KINDS: dict[str, Callable[[Path], bool]] = {
    "evaluation": _json("model", "images", "top1"),
    "plan": _json("problems", "rates"),
    "bench": _json("loader", "teacher", "student", "ratio"),
    "comparison": _json("differences", "runs"),
    "page": _page,
    "onnx": _onnx,
    "torchscript": _torchscript,
    "bundle": _bundle,
}
