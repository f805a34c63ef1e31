"""Settings of short first stages, for the tests of what goes on from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from case import STEPS


def first_stage(colours: Path, teacher_file: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a distillation of a few seconds."""
    return {
        "steps": STEPS // 2,
        "batch_size": 8,
        "log_every_steps": 2,
        "evaluate_every_epochs": 0.5,
        "probe.every_epochs": 0,
        "checkpoint.every_steps": 4,
        "schedule.lr": 1.0,
        "student.arch": "test_resnet",
        "augment.size": 32,
        "augment.flip": 0.0,
        "teacher.checkpoint": str(teacher_file),
        "teacher.verify": False,
        "data.labeled": str(colours / "train"),
        "data.unlabeled": str(colours / "unlabeled"),
        "data.val": str(colours / "val"),
        "data.workers": 0,
        **changes,
    }


def words(settings: dict[str, Any]) -> list[str]:
    return [f"--{key}={json.dumps(value) if value is not None else 'null'}"
            if not isinstance(value, str) else f"--{key}={value}"
            for key, value in settings.items()]  # fmt: skip
