"""What publishing a release changes at its place, a hub or a folder, told before it is done; and
releases in local folders, replacing one by another."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path
from typing import Literal

from zoo.errors import InputError
from zoo.release import MANIFEST, copy, names_in, read_manifest, sha256_of, staging, sums_of, verify

Say = Callable[[str], object]
SIGNS = {"added": "+", "changed": "~", "removed": "-"}
DIFF_BYTES = 1 << 16


@dataclass(frozen=True)
class Change:
    """One file."""

    kind: Literal["added", "changed", "removed"]
    name: str
    bytes: int


def compared(folder: Path, names: Mapping[str, str], there: Mapping[str, bool]) -> list[Change]:
    """What of a release is not at its place yet.

    Args:
        folder: the release.
        names: its files, and their sha256.
        there: files at the place, and whether they are the same.
    """
    return [
        Change("changed" if name in there else "added", name, (folder / name).stat().st_size)
        for name in sorted(names)
        if not there.get(name)
    ]


def difference(old: Path, new: Path, name: str, place: str) -> str:
    """What is different of a file, empty if it is no small text."""
    if max(old.stat().st_size, new.stat().st_size) > DIFF_BYTES:
        return ""
    try:
        before, after = (file.read_text(encoding="utf-8").splitlines() for file in (old, new))
    except UnicodeDecodeError:
        return ""
    return "\n".join(unified_diff(before, after, f"{place}/{name}", f"new/{name}", lineterm=""))


def tell(say: Say, changes: list[Change], place: str, dry_run: bool) -> None:
    """Say what changes, a line a file."""
    if not changes:
        say(f"{place} already holds this release; nothing to do")
        return
    say(f"{place} {'would get' if dry_run else 'gets'} {len(changes)} changes:")
    for change in changes:
        say(f"  {SIGNS[change.kind]} {change.name} ({change.bytes:,} bytes {change.kind})")


RETIRED = ".old"
"""Ending of what was replaced, until it is deleted."""


def place(folder: Path, to: Path, *, dry_run: bool = False, say: Say = print) -> list[Change]:
    """Put a copy of a release at `to`, where nothing or an earlier release is.

    Returns:
        What changes; nothing if it is there already.

    Raises:
        InputError: the folder is no release, or `to` holds something else.
    """
    sums = sums_of(folder)
    if not dry_run:
        _bring_back(to.absolute())
    old = _release_at(to) if to.exists() and (not to.is_dir() or any(to.iterdir())) else {}
    changes = compared(folder, sums, {name: old[name] == sums.get(name) for name in old})
    gone = sorted(old.keys() - sums.keys())
    changes += [Change("removed", name, (to / name).stat().st_size) for name in gone]
    tell(say, changes, str(to), dry_run)
    if dry_run:
        for change in changes:
            if change.kind == "changed":
                say(difference(to / change.name, folder / change.name, change.name, str(to)))
    elif changes:
        _replace(folder, to)
        say(f"{to}: {len(sums)} files, every sha256 compared")
    return changes


def _release_at(to: Path) -> dict[str, str]:
    """sha256 of what is there now, whatever its ssld.json says."""
    if not (to / MANIFEST).is_file():
        raise InputError(f"{to} is not empty and no release; give another folder")
    listed = {MANIFEST, *read_manifest(to)["files"]}
    for name in sorted(names_in(to) - listed):
        raise InputError(
            f"{to} holds {name}, which is not of the release there; move it away or give another "
            "folder"
        )
    return {name: sha256_of(to / name) for name in listed if (to / name).is_file()}


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
