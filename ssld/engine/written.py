"""The names that ssld writes into a run folder, the only ones that it ever removes there.

Whatever else lies in the folder is its user's: notes, logs, images, a model card in `student/`. It
is left where it is, or goes along when the folder around it is replaced. Links are unlinked, never
followed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

CONFIG = "config.yaml"
OLD = ".overwritten"
"""Where `--overwrite` keeps the old run until the new one has begun; see `overwrite.py` here."""
NOBODYS = re.compile(r"\.DS_Store|Thumbs\.db|desktop\.ini|\.nfs[0-9a-f]+")
"""What file managers and NFS leave behind: it keeps nobody from removing a folder."""
_EXPORT = r"(config\.json|model\.safetensors)"
_NETWORKS = r"(student|ema|(ema_)?auxiliary)\.safetensors"
_CHECKPOINT = rf"({_NETWORKS}|optimizer\.pt|(state|manifest)\.json)"
_WRITTEN = (
    r"config\.yaml",
    r"(run|recipe|resolutions|probe|preflight|predictions)\.json",
    r"(metrics|unreadable)\.jsonl",
    r"report\.html",
    r"preflight\.md",
    r"held_out\.npz",
    r"model\.onnx(\.data)?",
    r"\.model\.onnx\.tmp/model\.onnx(\.data)?",
    rf"(student|model)/{_EXPORT}",
    rf"\.(student|model)\.(tmp|old)/{_EXPORT}",
    rf"checkpoints/(damaged-)?step-\d{{8,}}/{_CHECKPOINT}",
    rf"checkpoints/\.(damaged-)?step-\d{{8,}}\.(tmp|old)/{_CHECKPOINT}",
    r"pictures/step-\d{8,}\.jpg",
    r"tensorboard/(events\.out\.tfevents\..*|hparams\.yml)",
    r"tensorboard/[\d.]+/(events\.out\.tfevents\..*|hparams\.yml)",
    r"\.lock",
)


def _parts(pattern: str) -> tuple[re.Pattern[str], ...]:
    *folders, name = pattern.split("/")
    whole = rf"{name}|\.{name}\.tmp"  # the latter while it is written (`write_atomically`)
    return tuple(re.compile(part) for part in (*folders, whole))


_PATTERNS = [_parts(pattern) for pattern in _WRITTEN]


def _is_ours(parts: tuple[str, ...], *, folder: bool, link: bool = False) -> bool:
    """Whether ssld writes an entry of this path, relative to a run folder."""
    if parts[0] == OLD:
        parts = parts[1:]
    for pattern in _PATTERNS:
        fits = all(p.fullmatch(name) for p, name in zip(pattern, parts, strict=False))
        if fits and (link or folder) and len(parts) < len(pattern):
            return True
        if fits and not folder and len(parts) == len(pattern):
            return True
    return False


def _entries(folder: Path, above: tuple[str, ...]) -> Iterator[tuple[Path, tuple[str, ...], bool]]:
    """(path, its parts, whether it is a folder that is ours) of each entry that is ours."""
    for entry in _listed(folder):
        parts, link = (*above, entry.name), entry.is_symlink()
        is_folder = entry.is_dir(follow_symlinks=False)
        nobodys = NOBODYS.fullmatch(entry.name) and not is_folder
        if nobodys or _is_ours(parts, folder=is_folder, link=link):
            yield Path(entry.path), parts, is_folder


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def foreign(folder: Path, under: str = "") -> list[Path]:
    """What lies in a run folder and ssld does not write, sorted; a folder of it is named as one.

    Args:
        under: where `folder` stands in the run folder, as `checkpoints/step-00000010`.
    """
    above = tuple(filter(None, under.split("/")))
    ours = list(_entries(folder, above))
    known = {path.name for path, _, _ in ours}
    strangers = [Path(entry.path) for entry in _listed(folder) if entry.name not in known]
    for path, parts, is_folder in ours:
        if is_folder:
            strangers += foreign(path, "/".join(parts))
    return sorted(strangers)


def folders(folder: Path, under: str = "") -> Iterator[Path]:
    """`folder` and all below it that are ours."""
    yield folder
    for path, parts, is_folder in _entries(folder, tuple(filter(None, under.split("/")))):
        if is_folder:
            yield from folders(path, "/".join(parts))


def remove(folder: Path, under: str = "") -> OSError | None:
    """Remove what is ours in a folder, `config.yaml` last and only if all else is gone; then the
    folder itself, if nothing is left in it.

    Returns:
        the first error; what can be removed is removed nevertheless.
    """
    problem: OSError | None = None
    try:
        if folder.is_symlink():
            folder.unlink()
            return None
        ours = list(_entries(folder, tuple(filter(None, under.split("/")))))
    except FileNotFoundError:
        return None
    except OSError as error:
        return error
    for path, parts, is_folder in sorted(ours, key=lambda x: x[0].name == CONFIG):
        if path.name == CONFIG and problem:
            break
        try:
            failure = remove(path, "/".join(parts)) if is_folder else path.unlink(missing_ok=True)
        except OSError as error:
            failure = error
        problem = problem or failure
    with contextlib.suppress(OSError):  # something else is left in it
        folder.rmdir()
    return problem


def replace_folder(new: Path, old: Path, under: str) -> None:
    """Put the finished folder `new` where `old` is or was; what is not ours in `old` goes along.

    Args:
        under: where `old` stands in its run folder.
    """
    retired = old.with_name(f".{old.name}.old")
    _hand_over(retired, new, under)  # of a replacement that was killed
    if os.path.lexists(old):
        old.rename(retired)
    new.replace(old)
    _hand_over(retired, old, under)


def _hand_over(retired: Path, to: Path, under: str) -> None:
    if retired.is_dir() and not retired.is_symlink():
        for path in foreign(retired, under):
            target = to / path.relative_to(retired)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    remove(retired, under)
