"""Releases in local folders: what publishing would change there, and replacing one by another."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable
from difflib import unified_diff
from pathlib import Path

from zoo.errors import InputError
from zoo.release import MANIFEST, copy, names_in, read_manifest, sha256_of, staging, verify

RETIRED = ".old"
"""Ending of what was replaced, until it is deleted."""


def place(
    folder: Path, to: Path, *, dry_run: bool = False, say: Callable[[str], object] = print
) -> list[str]:
    """Put a copy of a release at `to`, where nothing or an earlier release is.

    Returns:
        What changes, a line each: `+ name`, `~ name` or `- name`; nothing if it is there already.

    Raises:
        InputError: the folder is no release, or `to` holds something else.
    """
    new = {**verify(folder)["files"], MANIFEST: {"sha256": sha256_of(folder / MANIFEST)}}
    if not dry_run:
        _bring_back(to.absolute())
    old: dict[str, dict[str, str]] = {}
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        old = _release_at(to)
    changes = [f"+ {name}" for name in new if name not in old]
    changes += [f"~ {n}" for n in new if n in old and new[n]["sha256"] != old[n]["sha256"]]
    changes += [f"- {name}" for name in old if name not in new]
    for line in changes:
        say(f"  {line}")
        if dry_run and line.startswith("~"):
            say(_difference(to / line[2:], folder / line[2:], line[2:]))
    if not changes:
        say(f"{to} already holds this release; nothing to do")
    elif dry_run:
        say(f"{to} would get these {len(changes)} changes")
    else:
        _replace(folder, to)
        say(f"{to}: {len(new)} files, every sha256 compared")
    return changes


def _difference(old: Path, new: Path, name: str) -> str:
    """What is different, of texts."""
    try:
        texts = [file.read_text(encoding="utf-8").splitlines() for file in (old, new)]
    except UnicodeDecodeError:
        return f"    {old.stat().st_size:,} bytes, {new.stat().st_size:,} bytes"
    shown = (f"{old.parent}/{name}", f"new/{name}")
    return "\n".join(unified_diff(texts[0], texts[1], *shown, lineterm=""))


def _release_at(to: Path) -> dict[str, dict[str, str]]:
    """sha256 of what is there now, whatever its ssld.json says."""
    if not (to / MANIFEST).is_file():
        raise InputError(f"{to} is not empty and no release; give another folder")
    listed = {MANIFEST, *read_manifest(to)["files"]}
    for name in sorted(names_in(to) - listed):
        raise InputError(
            f"{to} holds {name}, which is not of the release there; move it away or give another "
            "folder"
        )
    return {name: {"sha256": sha256_of(to / name)} for name in listed if (to / name).is_file()}


def _bring_back(to: Path) -> None:
    """What was at `to` before a replacement that was killed between its two renames."""
    retired = sorted(to.parent.glob(f".{glob.escape(to.name)}.*{RETIRED}"))
    if retired and not os.path.lexists(to):
        retired[-1].rename(to)


def _replace(folder: Path, to: Path) -> None:
    with staging(to.absolute()) as part:
        copy(folder, part)
        verify(part)
        retired = part.with_name(f"{part.name}{RETIRED}")
        if to.exists():
            to.rename(retired)
        part.rename(to)
        shutil.rmtree(retired, ignore_errors=True)
