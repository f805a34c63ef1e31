"""The shortest distillation, as a user types it, and what is in a folder before and after."""

from __future__ import annotations

from pathlib import Path

from ssld.engine.run_folder import LOCK


def settings(colours: Path, teacher_file: Path, out: Path, **changes: object) -> dict[str, object]:
    """Of two steps; a change to None leaves one out."""
    given = {
        "out": out,
        "steps": 2,
        "batch_size": 8,
        "log_every_steps": 1,
        "student.arch": "test_resnet",
        "augment.size": 32,
        "teacher.checkpoint": teacher_file,
        "teacher.verify": "false",
        "data.unlabeled": colours / "unlabeled",
        "data.val": colours / "val",
        "data.workers": 0,
        "probe.every_epochs": 0,
        "trackers": "[]",
        **changes,
    }
    return {key: value for key, value in given.items() if value is not None}


def words(colours: Path, teacher_file: Path, out: Path, **changes: object) -> list[str]:
    """The same on the command line."""
    given = settings(colours, teacher_file, out, **changes)
    return [f"--{key}={value}" for key, value in given.items()]


def tree(folder: Path) -> dict[str, bytes | str]:
    """Every file and link in a folder."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if (path.is_symlink() or path.is_file()) and path.name != LOCK
    }
