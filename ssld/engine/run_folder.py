"""The run folder: the whole truth about a run, written so that a reader never sees half a file.

config.yaml       resolved settings          metrics.jsonl   one JSON object a line
run.json          versions, data, networks   unreadable.jsonl  images that could not be read
checkpoints/      training state             student/        timm folder with the best student
report.html       curves and pictures        tensorboard/    the same metrics

metrics.jsonl of 750,000 lines has half a GB. What was read is not read again; of it evaluations are
kept as they are, and of training lines as many means over neighbours as a plot has room for.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ssld.common.errors import InputError, did_you_mean
from ssld.common.files import LOCK, cannot_write, locked, read_object, write_atomically
from ssld.common.packages import versions
from ssld.common.paths import check_inputs
from ssld.common.settings import default_settings, flat, plain, under
from ssld.engine import overwrite
from ssld.engine.config import LoopConfig
from ssld.engine.overwrite import CONFIG, OLD, remove

Line = dict[str, Any]
PICTURES = "pictures"
"""Folder of `step-00000100.jpg`, the sheet of an evaluation; none of a classifier."""
MOST_POINTS = 1000
"""Most points of a curve."""
OF_THE_LAST_LINE = ("kind", "step", "epoch", "unreadable")
"""Of several lines taken together those of the last; all other numbers are means."""
BLOCK_BYTES = 2**16


def lines_of(metrics: Path) -> Iterator[Line]:
    """The whole lines; one that was cut off by a kill is left out.

    Raises:
        InputError: a line is damaged.
    """
    return (line for line, _ in _lines_from(metrics, 0))


def read_lines(metrics: Path) -> list[Line]:
    """The same, all at once."""
    return list(lines_of(metrics))


def _lines_from(metrics: Path, start: int) -> Iterator[tuple[Line, int]]:
    """Lines, and where each ends, bytes."""
    if not metrics.is_file():
        return
    end = start
    with metrics.open("rb") as file:
        file.seek(start)
        for raw in file:
            if not raw.endswith(b"\n"):
                return
            end += len(raw)
            yield _parsed(metrics, raw, end), end


def _parsed(metrics: Path, raw: bytes, end: int) -> Line:
    try:
        line = json.loads(raw)
        if isinstance(line["step"], int) and isinstance(line["kind"], str):
            return line
        raise ValueError("no step and kind")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(
            f"{metrics} is damaged: the line that ends at byte {end:,} is not one of a run; remove "
            "it"
        ) from error


def cut_after(metrics: Path, step: int, pending_evaluation: bool) -> None:
    """Drop the lines of later steps, that of `step`'s evaluation if it is pending, and half a line
    at the end. Steps never fall, so this looks from the end on, however long the file is."""
    if not metrics.is_file():
        return
    keep = 0
    for line, end in _backwards(metrics):
        pending = pending_evaluation and line["kind"] == "eval"
        if line["step"] < step or (line["step"] == step and not pending):
            keep = end
            break
    with metrics.open("rb+") as file:
        file.truncate(keep)
        os.fsync(file.fileno())


def _backwards(metrics: Path) -> Iterator[tuple[Line, int]]:
    """Whole lines from the last on, and where each ends."""
    with metrics.open("rb") as file:
        start = file.seek(0, os.SEEK_END)
        tail = b""  # from `start` on: the end of a line whose begin is not read yet
        while start > 0:
            size = min(BLOCK_BYTES, start)
            start -= size
            file.seek(start)
            tail = file.read(size) + tail
            *parts, half = tail.split(b"\n")
            end = start + len(tail) - len(half)
            while len(parts) > (start > 0):
                raw = parts.pop()
                yield _parsed(metrics, raw, end), end
                end -= len(raw) + 1
            tail = b"".join(part + b"\n" for part in parts)


class Thinned:
    """Training lines as at most `MOST_POINTS` points, each a mean over as many neighbours."""

    def __init__(self) -> None:
        self.size = 1
        self._groups: list[tuple[int, Line, dict[str, list[float]]]] = []
        """Lines in it, the last one, and of each number its sum and how often it is there."""

    def add(self, line: Line) -> None:
        numbers = {
            k: x
            for k, x in line.items()
            if k not in OF_THE_LAST_LINE and isinstance(x, int | float)
        }
        group = (1, line, {k: [x, 1.0] for k, x in numbers.items()})
        if self._groups and self._groups[-1][0] < self.size:
            group = _joined(self._groups.pop(), group)
        self._groups.append(group)
        if len(self._groups) > MOST_POINTS:
            self.size *= 2
            pairs = zip(self._groups[::2], [*self._groups[1::2], None], strict=False)
            self._groups = [_joined(a, b) if b else a for a, b in pairs]

    def lines(self) -> list[Line]:
        """In the order of their steps."""
        return [
            last if count == 1 else {**last, **{k: x / n for k, (x, n) in sums.items()}}
            for count, last, sums in self._groups
        ]


def _joined(a: tuple, b: tuple) -> tuple:
    sums = {k: list(x) for k, x in a[2].items()}
    for key, (total, count) in b[2].items():
        known = sums.setdefault(key, [0.0, 0.0])
        known[0], known[1] = known[0] + total, known[1] + count
    return a[0] + b[0], b[1], sums


class History:
    """What a run that writes a metrics.jsonl wants to know of it."""

    def __init__(self, metrics: Path) -> None:
        self.metrics = metrics
        self.forget()

    def forget(self) -> None:
        """The file was cut."""
        self._read, self._train, self._evaluations = 0, Thinned(), []

    def _read_on(self) -> None:
        for line, end in _lines_from(self.metrics, self._read):
            self._read = end
            if line["kind"] == "eval":
                self._evaluations.append(line)
            else:
                self._train.add(line)

    def evaluations(self) -> list[Line]:
        """Their lines."""
        self._read_on()
        return self._evaluations

    def training(self) -> list[Line]:
        """Training lines, at most `MOST_POINTS`."""
        self._read_on()
        return self._train.lines()


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


def deciding(settings: dict[str, Any]) -> dict[str, Any]:
    """Of nested settings all that decide a run's result, by full name."""
    return {key: value for key, value in flat(settings).items() if not under(key, HARMLESS)}


TEMPORARY = f".{CONFIG}.tmp"
WRITTEN_ANEW = "put a copy back, or delete it: --resume writes it anew"


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
    # What the run's version of ssld did not know was as the default says.
    before, absent = {**default_settings(type(config)), **old}, object()
    changed = {
        key: f"{key} was {before.get(key)!r} and is {new.get(key)!r}"
        for key in sorted(known)
        if before.get(key, absent) != new.get(key, absent)
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
            return list(
                read_object(self.path / "run.json", WRITTEN_ANEW).get("changed_on_resume") or ()
            )
        return []

    def record(self, key: str, value: Any) -> None:
        """Add a fact to run.json."""
        facts = read_object(self.path / "run.json", WRITTEN_ANEW)
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
