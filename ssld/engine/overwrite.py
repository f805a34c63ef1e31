"""The names that ssld writes into a run folder, the only ones that it ever removes there, and
`--overwrite`: an old run gives way to a new one, and nothing else does.

Whatever else lies in the folder is its user's: notes, logs, images, a model card in `student/`. It
is left where it is, or goes along when the folder around it is replaced. Links are unlinked, never
followed.

Everything is checked before anything is touched. Then the old run's entries are renamed into
OUT/.overwritten, config.yaml last; the new run writes its settings; only then is the old one
removed, config.yaml last. So at any instant the two folders say what happened, and what the next
start has to do:

    OUT/.overwritten    OUT             what happened              the next start
    no config.yaml      any             being put aside, or gone   moves back what is there
    config.yaml         no config.yaml  put aside                  moves it back
    config.yaml         config.yaml     the new run has begun      removes what is left of the old
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ssld.common.errors import InputError
from ssld.common.files import LOCK, read_object

CONFIG = "config.yaml"
OLD = ".overwritten"
"""Where `--overwrite` keeps the old run until the new one has begun."""
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
    r"training-views\.jpg",
    r"labeled\.txt",
    r"held_out\.(npz|txt)",
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


INPUTS = (
    *("data", "classification", "teacher", "teachers", "labels"),
    *("student", "backbone", "run", "init"),
)
"""Groups of settings that name what a run reads."""
NO_INPUTS = ("data.classes",)
GIVE_ANOTHER = "give another folder"
SHOWN = 6
"""Entries that a message names."""


def refuse(out: Path, settings: dict[str, Any]) -> None:
    """Check that nothing but a run of ssld would be removed from `out`; nothing is touched.

    Args:
        settings: those of the new run, nested.

    Raises:
        InputError: `out` is no run folder, holds what the new run reads or what ssld has not
            written, or its entries cannot be removed.
    """
    if not _is_run(out):
        raise InputError(
            f"out {out} is not a run folder (no config.yaml that a training command wrote): "
            "--overwrite would delete foreign files; give another folder"
        )
    inside = inputs_inside(out, settings)
    if inside:
        named = ", ".join(f"{key} {text}" for key, text in inside[:SHOWN])
        raise InputError(
            f"out {out}: --overwrite would delete what this run reads from inside of it "
            f"({named}{_more(inside)}); give another folder"
        )
    others = foreign(out)
    if others:
        named = ", ".join(str(path.relative_to(out)) for path in others[:SHOWN])
        raise InputError(
            f"out {out}: --overwrite deletes what ssld wrote and nothing else, but there is also "
            f"{named}{_more(others)}; move that away, or give another folder"
        )
    for folder in folders(out):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(
                f"out {out}: {folder} is not writable, its entries cannot be deleted; mend its "
                "rights, or give another folder"
            )


def _more(entries: list[Any]) -> str:
    return f" and {len(entries) - SHOWN} more" if len(entries) > SHOWN else ""


def _is_run(out: Path) -> bool:
    """Whether a training command made the folder: it has a run.json, or, killed before that,
    settings with the keys that no user writes."""
    for folder in (out, out / OLD):
        if not (folder / CONFIG).is_file():
            continue
        with contextlib.suppress(OSError, InputError):
            facts = folder / "run.json"
            if facts.is_file():
                return "versions" in read_object(facts, GIVE_ANOTHER)
            keys = {"out", "resume", "overwrite", "allow_changes"}
            return keys <= set(read_object(folder / CONFIG, GIVE_ANOTHER))
    return False


def inputs_inside(
    out: Path, settings: dict[str, Any], inputs: Sequence[str] = INPUTS
) -> list[tuple[str, str]]:
    """(setting, value) of everything that is read and lies in `out`, by whatever path or link.

    Args:
        inputs: settings, or groups of them, that name what is read.
    """
    try:
        folder = os.stat(out)
    except OSError:
        return []
    groups = {key: value for key, value in settings.items() if key in inputs}
    named = [(key, text) for key, text in _texts(groups) if key not in NO_INPUTS]
    return [(key, text) for key, text in named if any(_within(x, folder) for x in _places(text))]


def _texts(tree: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, str):
        yield name, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from _texts(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _texts(value, name)


def _places(text: str) -> Iterator[str]:
    """Local paths that a source, a checkpoint or a name stands for, and every link on the way."""
    for part in text.split("::"):  # annotations::images
        path = re.sub(r"^(local-dir:|file://|local://)", "", part)
        if not path or "\0" in path or re.match(r"\w[\w+.-]*://", path):
            continue
        if not os.path.lexists(path):  # a pattern: its folder
            path = os.path.dirname(re.split(r"[*?\[{]", path, maxsplit=1)[0]) or os.curdir
            if not (os.path.lexists(path) and re.search(r"[*?\[{]", part)):
                continue
        yield os.path.realpath(path)
        for _ in range(40):  # as many links as Linux follows
            yield os.path.abspath(path)
            if not os.path.islink(path):
                break
            path = os.path.join(os.path.dirname(path), os.readlink(path))


def _within(path: str, folder: os.stat_result) -> bool:
    """Whether `path` is the folder or below it, by identity, not by spelling."""
    for place in (Path(path), *Path(path).parents):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(place), folder):
                return True
    return False


@contextlib.contextmanager
def giving_way(out: Path, settings: dict[str, Any]) -> Iterator[None]:
    """While the body writes the new run's settings the old run is aside; then it is removed, or
    put back if the body fails. The caller holds the folder's lock.

    Raises:
        InputError: see `refuse`; or the old run cannot be moved, then it is where it was.
    """
    recover(out)
    if not (out / CONFIG).exists():
        yield
        return
    refuse(out, settings)
    _put_aside(out)
    try:
        yield
    except BaseException:
        (out / "run.json").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            (out / "checkpoints").rmdir()
        (out / CONFIG).unlink(missing_ok=True)  # last: until then the new run has begun
        recover(out)
        raise
    _finish(out)


def _put_aside(out: Path) -> None:
    old, moved = out / OLD, []
    try:
        old.mkdir()
        for path in sorted(out.iterdir(), key=lambda x: x.name == CONFIG):
            if path.name not in (LOCK, OLD) and not NOBODYS.fullmatch(path.name):
                path.rename(old / path.name)
                moved.append(path.name)
    except OSError as error:
        for name in reversed(moved):
            (old / name).rename(out / name)
        with contextlib.suppress(OSError):
            old.rmdir()
        reason = error.strerror or error
        raise InputError(
            f"out {out}: the old run cannot be moved out of the way ({error.filename}: {reason}), "
            "it is as it was; mend its rights, or give another folder"
        ) from error


def recover(out: Path) -> None:
    """Finish or take back an overwriting that was interrupted; see the table above. The caller
    holds the folder's lock.

    Raises:
        InputError: what was put aside cannot be moved back.
    """
    old = out / OLD
    if not old.is_dir():
        return
    if (old / CONFIG).exists() and (out / CONFIG).exists():
        return _finish(out)
    twice = [path.name for path in old.iterdir() if os.path.lexists(out / path.name)]
    if twice:
        raise InputError(
            f"out {out}: an --overwrite was interrupted, and {twice[0]} is both there and in "
            f"{OLD}: move one of them away"
        )
    try:
        for path in sorted(old.iterdir(), key=lambda x: x.name == CONFIG):
            path.rename(out / path.name)
        old.rmdir()
    except OSError as error:
        raise InputError(
            f"out {out}: an --overwrite was interrupted, and what it had put into {OLD} cannot be "
            f"moved back ({error.filename}: {error.strerror or error}): move it back by hand"
        ) from error


def _finish(out: Path) -> None:
    problem = remove(out / OLD, OLD)
    if problem:
        print(
            f"warning: {out / OLD} holds what is left of the run that was overwritten, which "
            f"cannot be deleted ({problem.filename}: {problem.strerror or problem})",
            file=sys.stderr,
        )
