"""The run folder: the whole truth about a run, written so that a reader never sees half a file.

config.yaml       resolved settings          metrics.jsonl   one JSON object a line
run.json          versions, data, networks   unreadable.jsonl  images that could not be read
checkpoints/      training state             student/        timm folder with the trained student
report.html       curves and pictures        tensorboard/    the same metrics
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from ssld.config import RunConfig
from ssld.errors import InputError

HARMLESS = {"out", "resume", "overwrite", "log_every_steps", "trackers", "checkpoint", "workers"}
"""Settings that may differ on resume because they do not change the result."""


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` with `text` in one step that survives a power cut."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def replace_folder(new: Path, old: Path) -> None:
    """Put the finished folder `new` where `old` is or was."""
    retired = old.with_name(f".{old.name}.old")
    shutil.rmtree(retired, ignore_errors=True)
    if old.exists():
        old.replace(retired)
    new.replace(old)
    shutil.rmtree(retired, ignore_errors=True)


class RunFolder:
    """Where a run writes. Only the main process does."""

    def __init__(self, path: Path, main: bool) -> None:
        self.path = path
        self.main = main

    def open(self, config: RunConfig, facts: dict[str, Any]) -> None:
        """Create the folder, or go on in it.

        Raises:
            InputError: it was made with settings that give another result.
        """
        previous = self.path / "config.yaml"
        if config.resume and previous.is_file():
            self._refuse_changes(previous, config)
        if not self.main:
            return
        if config.overwrite and self.path.is_dir():
            for path in self.path.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        write_atomically(previous, yaml.safe_dump(_plain(config), sort_keys=False))
        run = {**facts, "versions": versions()}
        write_atomically(self.path / "run.json", json.dumps(run, indent=2) + "\n")

    def _refuse_changes(self, previous: Path, config: RunConfig) -> None:
        old, new = _flat(yaml.safe_load(previous.read_text())), _flat(_plain(config))
        changed = [
            f"{key} was {old.get(key)!r} and is {new.get(key)!r}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key) and not HARMLESS & set(key.split("."))
        ]
        if changed:
            raise InputError(
                f"--resume in {self.path} with other settings: {'; '.join(changed[:5])}; set them "
                "back, or use another `out`"
            )

    def log(self, line: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        if self.main:
            with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps that a resume repeats."""
        metrics = self.path / "metrics.jsonl"
        if self.main and metrics.is_file():
            lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]
            kept = [line for line in whole if json.loads(line)["step"] <= step]
            write_atomically(metrics, "".join(kept))


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    names = ("ssld", "torch", "torchvision", "timm", "accelerate", "numpy", "simplejpeg", "pillow")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _plain(config: RunConfig) -> dict[str, Any]:
    """As YAML and JSON know it: lists for tuples."""
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    return {**plain, "resume": False, "overwrite": False}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
