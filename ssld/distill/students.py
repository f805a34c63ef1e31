"""`students` of a distillation: the settings of the run that each of them is.

Read while settings are checked: imports neither torch nor timm.
"""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ssld.cli.parse import parse_section
from ssld.common.errors import InputError, did_you_mean
from ssld.common.files import read_object
from ssld.common.recorded import check_recorded
from ssld.common.settings import plain
from ssld.common.settings_file import merged, shortened
from ssld.distill.config import DistillConfig
from ssld.engine.overwrite import CONFIG
from ssld.engine.run_folder import WRITTEN_ANEW, changed_settings, check_out

OWN = ("student", "optimizer", "schedule", "ema", "loss", "features", "checkpoint")
"""Settings in which students may differ: by none of them another batch is read, or another thing
taught."""
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)


def students_of(config: DistillConfig) -> dict[str, DistillConfig]:
    """The settings of each student's run, in the folder of its name in `out`: those of all, and on
    top of them its own.

    Raises:
        InputError: a name that is missing, not one of a folder or there twice; a setting that
            students share, or that there is not; a value that is not allowed.
    """
    own_of_start = ("out", "resume", "overwrite", "allow_changes", "students")
    common = {key: x for key, x in plain(config).items() if key not in own_of_start}
    found: dict[str, DistillConfig] = {}
    for number, entry in enumerate(config.students, 1):
        name = _name(entry, number, found)
        where = f"students, {name}"
        own = {key: x for key, x in entry.items() if key != "name"}
        _refuse_shared(where, own)
        tree = {**merged(common, own), "out": f"{config.out}/{name}"}
        one = parse_section("ssld distill", DistillConfig, [], settings=(where, tree))
        found[name] = replace(
            one,
            resume=config.resume,
            overwrite=config.overwrite,
            allow_changes=config.allow_changes,
        )
    return found


def _name(entry: dict[str, Any], number: int, others: dict[str, DistillConfig]) -> str:
    name = entry.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(
            f"students: the name of number {number} is {shortened(name)}: give each student one of "
            "letters, digits, -, _ and ., the name of its folder in `out`"
        )
    if name.lower() in map(str.lower, others):  # one folder on some disks
        raise InputError(f"students: the name {name!r} is there twice; give each its own")
    return name


def _refuse_shared(where: str, own: dict[str, Any]) -> None:
    known = {field.name for field in fields(DistillConfig)}
    loss = own.get("loss")
    shared = [key for key in own if key in known and key not in OWN]
    shared += ["loss.temperature"] if isinstance(loss, dict) and "temperature" in loss else []
    if shared:
        raise InputError(
            f"{where}: {shared[0]} is of all students, who see the same batches and are taught the "
            "same: set it outside of `students`"
        )
    unknown = [key for key in own if key not in known]
    if unknown:
        hint = did_you_mean(unknown[0], ["name", *OWN]) or f"; give name, {', '.join(OWN)}"
        raise InputError(f"{where}: unknown setting {shortened(unknown[0])}{hint}")


def check(config: DistillConfig) -> None:
    """`ssld.engine.run_folder.check_out` of each run of a distillation.

    Raises:
        InputError: see there, and `students_of`.
    """
    if not config.students:
        return check_out(config)
    if (Path(config.out) / CONFIG).exists():
        raise InputError(
            f"out {config.out} is the folder of one run: with `students` each run has a folder in "
            "`out`; give another one"
        )
    for one in students_of(config).values():
        check_out(one)


def is_complete(config: DistillConfig) -> bool:
    """Whether a run that is to go on has nothing left to do: it came to its end with these very
    settings, and its network is what it exported.

    Raises:
        InputError: see `ssld.engine.run_folder.changed_settings`.
    """
    out = Path(config.out)
    if not config.resume or changed_settings(out / CONFIG, config, given=True):
        return False
    try:
        if not read_object(out / "run.json", WRITTEN_ANEW).get("exported"):
            return False
        check_recorded(out / "student" / "model.safetensors")
        return True
    except (OSError, InputError):
        return False  # going on writes it again
