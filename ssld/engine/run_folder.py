"""The run folder: the whole truth about a run, written so that a reader never sees half a file.

config.yaml       resolved settings          metrics.jsonl   one JSON object a line
run.json          versions, data, networks   unreadable.jsonl  images that could not be read
checkpoints/      training state             student/        timm folder with the best student
report.html       curves and pictures        tensorboard/    the same metrics
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from ssld.common.errors import InputError, did_you_mean
from ssld.common.files import LOCK, cannot_write, locked, write_atomically
from ssld.common.local_paths import check_inputs
from ssld.common.settings import flat, plain, under
from ssld.common.written_files import read_object
from ssld.engine import overwrite
from ssld.engine.config import LoopConfig
from ssld.engine.history import History, cut_after, lines_of
from ssld.engine.written import CONFIG, OLD, remove

HARMLESS = (
    "out",
    "resume",
    "overwrite",
    "allow_changes",
    "trackers",
    "checkpoint.every_steps",
    "checkpoint.every_minutes",
    "checkpoint.keep",
    "data.workers",
)
"""Settings that may differ on resume because they do not change the result."""


TEMPORARY = f".{CONFIG}.tmp"
AGAIN = "put a copy back, or delete it: --resume writes it anew"


def check_out(config: LoopConfig) -> None:
    """`out` must be usable before minutes are spent on loading; nothing is created here.

    Raises:
        InputError: it is in use, foreign or not writable; it was made with other settings; a
            source or weights are not there; with `overwrite` what `overwrite.refuse` finds.
    """
    check_inputs(config)
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise InputError(f"out {out} is a file: give a folder")
    # A run that was killed while it wrote its settings has written nothing yet.
    if out.is_dir() and any(path.name not in (TEMPORARY, LOCK) for path in out.iterdir()):
        if not (config.resume or config.overwrite):
            raise InputError(
                f"out {out} is not empty: give --resume to go on, --overwrite to start anew, "
                "or another folder"
            )
        if config.overwrite:
            overwrite.refuse(out, plain(config))
        elif not _settings_in(out).is_file():
            raise InputError(
                f"out {out} is not a run folder (no config.yaml): nothing to resume; give another "
                "folder"
            )
    parent = out
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"out {out}: {parent} is not writable; give another folder")
    if config.resume:
        changed_settings(_settings_in(out), config, given=True)


def _settings_in(out: Path) -> Path:
    """Of the run in `out`, or of the one there that an --overwrite was putting aside when it was
    killed."""
    aside = out / OLD / CONFIG
    return aside if aside.is_file() and not (out / CONFIG).exists() else out / CONFIG


def changed_settings(previous: Path, config: LoopConfig, *, given: bool = False) -> list[str]:
    """What differs from the settings that a run was started with, and is allowed to.

    Args:
        previous: its config.yaml.
        given: look only at what `config` says; what it leaves open is not resolved yet.

    Raises:
        InputError: it differs and gives another result; `allow_changes` names what is no setting.
    """
    if not previous.is_file():
        return []
    old = flat(read_object(previous, "put a copy back, or use another `out`"))
    new = flat(plain(config))
    known = old.keys() | new.keys()
    for name in config.allow_changes:
        if not any(under(key, [name]) for key in known):
            hint = did_you_mean(name, sorted(known))
            raise InputError(f"allow_changes names {name!r}, which is no setting{hint}")
    absent = object()  # a setting that the other version of ssld did not know
    changed = {
        key: f"{key} was {old.get(key)!r} and is {new.get(key)!r}"
        for key in sorted(known)
        if old.get(key, absent) != new.get(key, absent)
        and not under(key, HARMLESS)
        and not (given and new.get(key) is None)
    }
    keys = [key for key in changed if not under(key, config.allow_changes)]
    if keys:
        more = f" and {len(keys) - 8} more" if len(keys) > 8 else ""
        raise InputError(
            f"--resume in {previous.parent} with other settings: "
            f"{'; '.join(changed[key] for key in keys[:8])}{more}; set them back, use another "
            f"`out`, or allow it with --allow_changes '{json.dumps(keys)}'"
        )
    return list(changed.values())


class RunFolder:
    """Where a run writes. Only the main process does."""

    def __init__(self, path: Path, main: bool) -> None:
        self.path = path
        self.main = main
        self._held = contextlib.ExitStack()
        self.history = History(self.metrics)

    def lock(self) -> None:
        """Make the folder; from now on until `unlock` it is this run's alone.

        Raises:
            InputError: another run is at work in it, a job that was queued twice perhaps.
        """
        if self.main:
            self._held.enter_context(locked(self.path))

    def unlock(self) -> None:
        """Let others into the folder."""
        self._held.close()

    def open(self, config: LoopConfig, facts: dict[str, Any]) -> None:
        """Create the folder, or go on in it.

        Raises:
            InputError: it was made with settings that give another result.
        """
        previous = self.path / CONFIG
        changed = changed_settings(previous, config) if config.resume else []
        if not self.main:
            return
        self.lock()
        anew = overwrite.giving_way(self.path, plain(config))
        with anew if config.overwrite else contextlib.nullcontext():
            for line in changed:
                print(f"resuming with changed settings: {line}")
            write_atomically(previous, yaml.safe_dump(plain(config), sort_keys=False))
            (self.path / "checkpoints").mkdir(exist_ok=True)
            run = {
                **facts,
                "versions": versions(),
                "changed_on_resume": self._changed_before() + changed,
            }
            write_atomically(self.path / "run.json", json.dumps(run, indent=2) + "\n")

    def recover(self) -> None:
        """Bring back what an --overwrite had put aside when it was killed, or finish that.

        Raises:
            InputError: it cannot be brought back, or another command is at work there.
        """
        if self.main and (self.path / OLD).is_dir():
            with locked(self.path):
                overwrite.recover(self.path)

    def _changed_before(self) -> list[str]:
        with contextlib.suppress(OSError, InputError):
            return list(read_object(self.path / "run.json", AGAIN).get("changed_on_resume") or ())
        return []

    def record(self, key: str, value: Any) -> None:
        """Add a fact to run.json."""
        facts = read_object(self.path / "run.json", AGAIN)
        write_atomically(self.path / "run.json", json.dumps(facts | {key: value}, indent=2) + "\n")

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        if not self.main:
            return
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise cannot_write(self.metrics, error) from error

    def sync(self) -> None:
        """Bring metrics.jsonl to the disk, before a checkpoint says that its lines are there."""
        if self.main and self.metrics.is_file():
            with self.metrics.open("rb") as file:
                os.fsync(file.fileno())

    def truncate(self, step: int, pending_evaluation: bool) -> None:
        """Drop the metrics of what a resume repeats."""
        if not self.main:
            return
        try:
            cut_after(self.metrics, step, pending_evaluation)
        except OSError as error:
            raise cannot_write(self.metrics, error) from error
        self.history.forget()
        if not (self.path / "tensorboard").is_symlink():
            remove(self.path / "tensorboard", "tensorboard")  # written anew from the lines


def read_lines(metrics: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl; one that was cut off by a kill is left out."""
    return list(lines_of(metrics))


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    names = ("ssld", "torch", "torchvision", "timm", "accelerate", "numpy", "simplejpeg", "pillow")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
