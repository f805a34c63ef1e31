"""A run folder as `ssld compare` reads it, at this moment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssld.common.errors import InputError
from ssld.common.files import read_object, reading
from ssld.common.settings import flat
from ssld.engine.run_folder import read_lines
from ssld.health.verdict import symptoms

LEAVE_OUT = "leave this run out"
HIDDEN = ("out", "resume", "overwrite", "allow_changes")  # how a run was started, not what it is
FACTS = (
    "teacher_sha256",
    "data_sha256",
    "val_sha256",
    "held_out",
    "processes",
    "device",
    "versions",
)
"""What run.json knows beyond the settings and that may explain a difference."""


@dataclass(frozen=True)
class SeenRun:
    """What a run folder holds at this moment."""

    label: str
    path: str
    settings: dict[str, Any]
    """Of config.yaml and run.json, by full name."""
    facts: dict[str, Any]
    lines: list[dict[str, Any]]
    """Of metrics.jsonl, at least one."""

    def points(self, kind: str, key: str) -> list[tuple[float, Any]]:
        """(epoch, value) of the lines that have it."""
        lines = (line for line in self.lines if line["kind"] == kind)
        return [(line["epoch"], line[key]) for line in lines if line.get(key) is not None]

    def counted(self) -> list[dict[str, Any]]:
        """The evaluations without symptoms, or all where there is none."""
        lines, classes = self.lines, self.settings.get("student.num_classes") or 0
        evaluations = [line for line in lines if line["kind"] == "eval"]
        healthy = [x for x in evaluations if not symptoms(x, classes)]
        return healthy or evaluations

    def values(self, kind: str, key: str) -> list[Any]:
        return [value for _, value in self.points(kind, key)]


def exported_metrics(facts: dict[str, Any], lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The metrics of a finished run's exported network; after a resolution fix those at the size
    that it chose. Empty where it was not evaluated.

    Args:
        facts: of run.json.
        lines: of metrics.jsonl.
    """
    if facts.get("resolution"):
        return facts["resolution"]["metrics"]
    step = facts["exported"]["step"]
    return next((x for x in lines if x["kind"] == "eval" and x["step"] == step), {})


def open_runs(paths: Sequence[str]) -> list[SeenRun]:
    """Read run folders.

    Raises:
        InputError: no run folder, one without a logged line or with a damaged file, the same twice.
    """
    return [_open(path, label) for path, label in zip(paths, _labels(paths), strict=True)]


def _labels(paths: Sequence[str]) -> list[str]:
    """Each folder's name, with as many parents as it takes to tell it from the others."""
    places = [os.path.realpath(path) for path in paths]
    same = [path for path, place in zip(paths, places, strict=True) if places.count(place) > 1]
    if same:
        raise InputError(f"runs: the same folder is given twice ({', '.join(same)}); give it once")
    parts = [Path(os.path.abspath(path)).parts[1:] for path in paths]  # without the root

    def label(mine: tuple[str, ...]) -> str:
        depth = 1
        while depth < len(mine) and sum(x[-depth:] == mine[-depth:] for x in parts) > 1:
            depth += 1
        return "/".join(mine[-depth:])

    return [label(mine) for mine in parts]


def _open(path: str, label: str) -> SeenRun:
    folder, advice = Path(path), "give folders that a training command wrote"
    if not folder.is_dir():
        raise InputError(f"runs: {path} is no folder; {advice}")
    for name in ("config.yaml", "run.json"):
        if not (folder / name).is_file():
            raise InputError(f"runs: {path} is not a run folder, it has no {name}; {advice}")
    config, facts = (read_object(folder / x, LEAVE_OUT) for x in ("config.yaml", "run.json"))
    with reading(folder / "metrics.jsonl", LEAVE_OUT):
        lines = read_lines(folder / "metrics.jsonl")
        if not all("epoch" in line for line in lines):
            raise ValueError("a line without epoch")
    if not lines:
        raise InputError(f"runs: {path} has no logged line yet; wait for one, or leave it out")
    with reading(folder, LEAVE_OUT):
        return SeenRun(label, path, _settings(config, facts), facts, lines)


def _settings(config: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    tree = {key: value for key, value in config.items() if key not in HIDDEN}
    tree["teachers"] = {str(i): one for i, one in enumerate(config.get("teachers") or [])}
    tree |= {key: facts[key] for key in (*FACTS, "changed_on_resume") if facts.get(key)}
    if "held_out" in tree:  # a list, because a path is no name of a setting
        tree["held_out"] = [f"{path}: {count}" for path, count in tree["held_out"].items()]
    return {key: value for key, value in flat(tree).items() if value != {}}
