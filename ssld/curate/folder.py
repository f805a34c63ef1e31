"""The folder of a curation: whether it may be written, and by one command at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ssld.common.errors import InputError
from ssld.common.files import locked, read_object, write_atomically
from ssld.curate.config import CurateConfig
from ssld.curate.context import Work
from ssld.curate.workers_ray import require_ray
from ssld.engine.overwrite import inputs_inside
from ssld.engine.run_folder import LOCK, TEMPORARY

INPUTS = ("gallery", "protected", "labeled", "teacher")
WRITTEN = {"gallery", "protected", "labeled", "engine", "shard_size", "max_unreadable", "out"}
"""All of them are in the config.yaml of a curation; in one that a user wrote some are missing."""


def check(config: CurateConfig, stage: str | None = None) -> None:
    """What can be known before torch is imported.

    Args:
        stage: `report` wants a curation in `out`, of which nothing is replaced but the report.

    Raises:
        InputError: no teacher to score with, no ray, or `out` cannot be the folder of this
            curation.
    """
    if stage in (None, "score", "select") and not config.has_teacher:
        raise InputError(
            "teacher.arch is missing: name a timm classifier, or give teacher.checkpoint; without "
            "one `ssld curate duplicates` finds near-duplicates, but nothing can be selected"
        )
    if config.engine == "ray" and stage != "report":
        require_ray()
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise InputError(f"out {out} is a file: give a folder")
    if out.is_dir() and any(out.iterdir()) and not _is_curation(out):
        raise InputError(
            f"out {out} is not empty and not the folder of a curation: give another folder"
        )
    if stage == "report":
        if not out.is_dir():
            raise InputError(f"out {out}: no such folder; give that of a curation")
        return
    inside = inputs_inside(out, dataclasses.asdict(config), INPUTS)
    if inside:
        raise InputError(
            f"out {out}: {inside[0][0]} {inside[0][1]} lies inside of it, where the tables of this "
            "curation are replaced; give another `out`, or move that"
        )


def _is_curation(out: Path) -> bool:
    config = out / "config.yaml"
    if not config.is_file():
        return all(path.name in (LOCK, TEMPORARY) for path in out.iterdir())
    with contextlib.suppress(OSError, InputError):
        return set(read_object(config, "give another folder")) >= WRITTEN
    return False


@contextlib.contextmanager
def opened(work: Work) -> Iterator[None]:
    """The folder, the first thing that is written.

    Raises:
        InputError: it cannot be made, or another command is at work in it.
    """
    with locked(work.out) if work.main else contextlib.nullcontext():
        if work.main:
            for left_by_a_kill in unfinished(work.out):
                left_by_a_kill.unlink(missing_ok=True)
            text = yaml.safe_dump(settings(work), sort_keys=False)
            write_atomically(work.out / "config.yaml", text)
        work.processes.wait()
        yield


def settings(work: Work) -> dict[str, Any]:
    """As YAML and JSON know them."""
    return json.loads(json.dumps(dataclasses.asdict(work.config)))


def unfinished(out: Path) -> Iterator[Path]:
    """What `write_atomically` was writing when it was killed; elsewhere in `out` nothing of ours
    lies."""
    folders = [out / name for name in ("index", "scores", "work")]
    for path in [*out.iterdir(), *(path for folder in folders for path in folder.rglob("*"))]:
        if re.fullmatch(r"\..+\.(parquet|npy)\.(tmp|\d+)", path.name) and not path.is_dir():
            yield path
