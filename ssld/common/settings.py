"""TODO."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any, Literal


def plain(config: Any) -> dict[str, Any]:
    """As YAML and JSON know it: lists for tuples; without what is of one start alone."""
    settings = json.loads(json.dumps(dataclasses.asdict(config)))
    return {**settings, "resume": False, "overwrite": False, "allow_changes": []}


def under(key: str, names: Sequence[str]) -> bool:
    """Whether `key` is one of the settings or in one of the groups."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their full names, `a.b.c`."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def require(holds: bool, message: str) -> None:
    """Raise ValueError with `message` unless something holds."""
    if not holds:
        raise ValueError(message)


def require_path(checkpoint: str | None, setting: str, name: str) -> None:
    """Refuse an id where weights on disk belong, before anything is imported for it."""
    require(
        not re.match(r"(local-dir|hf[-_]hub):", checkpoint or ""),
        f"{setting} is {checkpoint!r}, but takes a file or a folder: give this as {name}",
    )


Precision = Literal["fp32", "bf16", "fp16"]
