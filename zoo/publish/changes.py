"""What publishing a release changes at its place, a hub or a folder, told before it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path
from typing import Literal

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
