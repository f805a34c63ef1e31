"""What a stage of self-training takes over from the one before it, or from a teacher that is given.

This file imports neither torch nor timm.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssld.common.errors import InputError
from ssld.common.files import read_object
from ssld.common.settings import flat, under

INSTEAD = (("epochs", "steps"), ("schedule.milestones", "schedule.milestone_shares"))
"""Settings of which one takes the other's place."""
OFF = {
    "balance.alpha": ("balance",),
    "classification.train": ("classification",),
    "augment.mixup": ("augment.mixup_epochs",),
    "augment.mosaic": ("augment.mosaic_epochs",),
    "augment.policy": ("augment.randaugment_ops", "augment.randaugment_magnitude"),
    "ema.schedule": ("ema.end_decay",),
}
"""Settings by which a stage leaves something out, and what then has no effect and is not taken
over."""
NOTHING = (None, [], 0, "none", "constant", "null", "[]", "0")
"""How they do so, in a file or as a word."""
DECIDED = ("out", "resume", "overwrite", "allow_changes")
"""What no stage says itself."""


def inherited(settings: dict[str, Any]) -> dict[str, Any]:
    """What another stage takes over."""
    return {key: value for key, value in settings.items() if key not in DECIDED}


def without_others(tree: dict[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """Settings, nested, without those in whose place another one is given."""
    others = {pair[1 - i] for pair in INSTEAD for i in (0, 1) if pair[i] in given}
    dropped = [key for key in flat(tree) if key in others and key not in given]
    return pruned(tree, dropped) if dropped else tree


def without_effect(tree: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Settings, nested, without those that have no effect where the values that are `given`, by
    full name, leave something out."""
    off = [names for key, names in OFF.items() if key in given and given[key] in NOTHING]
    return pruned(tree, [name for names in off for name in names])


def pruned(tree: dict[str, Any], dropped: Sequence[str], prefix: str = "") -> dict[str, Any]:
    """Settings, nested, without those that are `dropped` by full name, or lie in such a section."""
    return {
        key: pruned(value, dropped, f"{prefix}{key}.") if isinstance(value, dict) else value
        for key, value in tree.items()
        if not under(f"{prefix}{key}", dropped)
    }


def check_teacher(file: str, run: str, task: str) -> None:
    """
    Args:
        file: names `run` as the teacher.

    Raises:
        InputError: the run has no network yet, or one of another task.
    """
    files = [Path(run) / "model/config.json", Path(run) / "config.json"]
    there = next((x for x in files if x.is_file()), None)
    found = read_object(there, "give another run as the teacher").get("task") if there else None
    if found == task:
        return
    what = f"is of {found}" if found else "has no trained detector or segmenter"
    student = Path(run) / "student"
    nested = (student / "config.yaml").is_file()  # it is a folder of `ssld selftrain`
    raise InputError(
        f"{file}: teacher.run {run} {what}, and the task is {task}; give "
        f"{student if nested else f'a run of ssld {task}'}"
    )
