"""What is on the disk of a trial: the recipe it was started with, and whether it is done."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from ssld.ablate.grid import Ablation, Trial, show
from ssld.common.errors import InputError
from ssld.common.files import read_object, write_atomically
from ssld.engine.run_folder import deciding

RECIPE, DONE, MARK = "recipe.yaml", "done.json", "ablation.yaml"
PREVIOUS_RECIPE = "recipe.before.yaml"
"""What RECIPE was before `overwrite`, until the trial is done: where new settings are refused, old
stages stay, so that they may be of the one or of the other."""
Row = dict[str, Any]


def check_out(out: Path) -> None:
    """It must be new, empty, or that of an ablation.

    Raises:
        InputError: it is not.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"out {out} is a file: give a folder")
    if out.is_dir() and not (out / MARK).is_file():
        left = {path.name for path in out.iterdir()} - {f".{MARK}.tmp", ".lock"}
        if left:
            raise InputError(
                f"out {out} is not empty and not the folder of an ablation: give another folder"
            )


def done_rows(folder: Path, trial: Trial) -> list[Row] | None:
    """Its results, if it is done and its recipe is still the same."""
    if (folder / PREVIOUS_RECIPE).exists():
        return None  # its stages may be of another recipe by now
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        done = json.loads((folder / DONE).read_text(encoding="utf-8"))
        if done["recipe"] == _digest(trial.recipe):
            return list(done["rows"])
    return None


def write_done(folder: Path, trial: Trial, rows: Sequence[Row]) -> None:
    done = {"recipe": _digest(trial.recipe), "rows": list(rows)}
    write_atomically(folder / DONE, json.dumps(done, indent=1) + "\n")
    (folder / PREVIOUS_RECIPE).unlink(missing_ok=True)


def _digest(recipe: dict[str, Any]) -> str:
    """The order of stages matters, that of settings does not."""
    stages = [(stage, deciding(settings)) for stage, settings in recipe.items()]
    return hashlib.sha256(json.dumps(stages, sort_keys=True).encode()).hexdigest()


def changed(folder: Path, trial: Trial) -> tuple[list[str], str]:
    """The stages that were begun with other settings, and those after them; and in words what
    differs. A stage that was added, left out or never begun is no change."""
    stages, words = _since(folder, _recipe_of(folder, RECIPE), trial)
    if stages and (folder / PREVIOUS_RECIPE).exists() and not unsure(folder, trial):
        return [], ""
    return stages, words


def unsure(folder: Path, trial: Trial) -> list[str]:
    """The stages that may still be of the recipe from before `overwrite`."""
    return _since(folder, _recipe_of(folder, PREVIOUS_RECIPE), trial)[0]


def _since(folder: Path, before: dict[str, Any], trial: Trial) -> tuple[list[str], str]:
    pairs = zip(before.items(), trial.recipe.items(), strict=False)
    for i, ((stage, old), (name, new)) in enumerate(pairs):
        begun = [x for x in list(before)[i:] if (folder / x).exists()]
        if begun and name != stage:
            return begun, f"stage {i + 1} was {stage} and is {name}"
        if begun and deciding(old) != deciding(new):
            return begun, _difference(stage, deciding(old), deciding(new))
    return [], ""


def _difference(stage: str, old: dict[str, Any], new: dict[str, Any]) -> str:
    keys = [key for key in {**old, **new} if old.get(key, ...) != new.get(key, ...)]
    words = [f"{stage}.{key} was {_shown(old, key)} and is {_shown(new, key)}" for key in keys[:4]]
    return "; ".join(words) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")


def _shown(settings: dict[str, Any], key: str) -> str:
    return show(settings[key]) if key in settings else "not given"


def _recipe_of(folder: Path, name: str) -> dict[str, Any]:
    try:
        return read_object(folder / name, f"remove {folder}")
    except FileNotFoundError:
        return {}


def check_unchanged(ablation: Ablation) -> None:
    """
    Raises:
        InputError: a trial was begun with other settings.
    """
    folders = {ablation.folder(trial): trial for trial in ablation.trials}
    changes = {folder: changed(folder, trial)[1] for folder, trial in folders.items()}
    changes = {folder: words for folder, words in changes.items() if words}
    if changes:
        folder, words = next(iter(changes.items()))
        more = f", and so were {len(changes) - 1} more" if len(changes) > 1 else ""
        raise InputError(
            f"{folder} was made with other settings ({words}){more}: set them back, give another "
            "--out, or --overwrite to start the changed stages anew"
        )


def prepare(folder: Path, trial: Trial) -> None:
    """Make its folder and write its recipe. Changed stages are left to `ssld recipe`, which gives
    nothing up before the new settings have proved to be good."""
    folder.mkdir(parents=True, exist_ok=True)
    before = _recipe_of(folder, RECIPE)
    if _since(folder, before, trial)[0] and not (folder / PREVIOUS_RECIPE).exists():
        _write(folder / PREVIOUS_RECIPE, before)
    if before != trial.recipe:
        _write(folder / RECIPE, trial.recipe)


def _write(path: Path, recipe: dict[str, Any]) -> None:
    write_atomically(path, yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))


def strays(ablation: Ablation) -> int:
    """How many trials have a folder and are not on the grid."""
    names = {trial.name for trial in ablation.trials}
    recipes = (ablation.out / "cells").glob(f"*/{RECIPE}")
    return sum(path.parent.name not in names for path in recipes)
