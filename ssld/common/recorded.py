"""Weights are opened only if they are those that were written: one flipped bit is not noticed by
anything that reads safetensors.

A run records the sha256 of what it exports in run.json, a checkpoint those of its files in
manifest.json, a release in ssld.json. A copy of an exported folder has no such record, and neither
has a run before its end or one of an older version.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssld.common.errors import InputError
from ssld.common.files import reading
from zoo.release import MANIFEST, sha256_of

EXPORTS = ("student", "model")
"""Folders of a run folder that hold its network."""
MADE_AGAIN = (
    "the command of that run, with --resume, writes it anew from its checkpoints; if it was "
    "changed on purpose, give a copy of the folder"
)


def check_recorded(file: Path, setting: str = "", digest: str | None = None) -> None:
    """Compare weights with the sha256 that was recorded when they were written, where there is one.

    Args:
        file: a safetensors file, in a run folder, a checkpoint or a release perhaps.
        setting: what names it, for messages.
        digest: its sha256, if that is known.

    Raises:
        InputError: it is another one, the record is damaged, or the file cannot be read.
    """
    for place in dict.fromkeys((file, Path(os.path.realpath(file)))):
        for record, recorded, advice in _records(place):
            if recorded is None:
                continue
            try:
                digest = digest or sha256_of(file)
            except OSError as error:
                raise InputError(f"{file} cannot be read ({error.strerror or error})") from error
            if digest != recorded:
                raise InputError(
                    f"{f'{setting}: ' if setting else ''}{file} is damaged or was changed: its "
                    f"sha256 is {digest[:12]}..., {record} says {str(recorded)[:12]}...; {advice}"
                )
            return


def _records(file: Path) -> Iterator[tuple[Path, Any, str]]:
    """(record, the sha256 in it or None, what to do if it is another one) of each that there is."""
    folder, run = file.parent, file.parent.parent
    if file.name == "model.safetensors" and folder.name in EXPORTS:
        facts = _read(run / "run.json")
        if facts is not None:
            exported = facts.get("exported")
            recorded = exported.get("sha256") if isinstance(exported, dict) else None
            if recorded is None:
                _say_unrecorded(str((run / "run.json").absolute()), folder.name)
            yield run / "run.json", recorded, MADE_AGAIN
    if folder.name.startswith("step-"):
        sums = _read(folder / "manifest.json") or {}
        yield folder / "manifest.json", sums.get(file.name), "give another checkpoint"
    files = (_read(folder / MANIFEST) or {}).get("files")
    entry = files.get(file.name) if isinstance(files, dict) else None
    recorded = entry.get("sha256") if isinstance(entry, dict) else None
    yield folder / MANIFEST, recorded, "fetch or publish the folder anew"


def _read(record: Path) -> dict[str, Any] | None:
    advice = "put a copy back, or give a copy of the weights' folder, which cannot be checked now"
    with reading(record, advice, OSError):
        try:
            digest = json.loads(record.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
    return digest if isinstance(digest, dict) else {}


@functools.cache  # once
def _say_unrecorded(record: str, folder: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(
            f"note: {record} has no sha256 of {folder}/, which is not checked therefore: the run "
            "has not finished, or is of an older version",
            file=sys.stderr,
        )
