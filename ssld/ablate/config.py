"""The settings of `ssld ablate`; those of the cells are in its file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields

from ssld.common.settings import PositiveInt, Settings


@dataclass(frozen=True)
class AblateConfig(Settings):
    """`ssld ablate F.yaml`: a recipe for each combination of a grid's settings.

    F.yaml is a recipe (`ssld recipe --help`) with a `grid`: settings of the first stage, or
    `finetune.x` and `fix.x`, with a list of values each; or any name with `label: {setting: value}`
    lines. Mean and deviation are over the axis `seed`. Options that are none of these below go to
    all recipes: `--data.labeled DIR`. The same command goes on where it was stopped, and keeps what
    is finished when the grid has grown.
    """

    file: str
    """The recipe with a grid; the first word is taken for it."""
    out: str | None = None
    """Folder for cells, tables and plots; by default the file's `out`."""
    devices: PositiveInt = 1
    """Cells at a time: each has a GPU of its own, or without any an equal share of the cores."""
    overwrite: bool = False
    """Start those stages anew whose settings have changed since."""
    overrides: list[str] = field(default_factory=list)
    """`name=value` for all recipes: what is given as --name value."""


def with_overrides(words: list[str]) -> list[str]:
    """The first word as --file, and what is no setting of `AblateConfig` as --overrides."""
    words = list(words)
    own = [f"--{field.name}" for field in fields(AblateConfig)] + ["--help", "-h"]
    settings = ["--file", words.pop(0)] if words and not words[0].startswith("-") else []
    overrides: list[str] = []
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if not equals and words and not words[0].startswith("--"):
            value = words.pop(0)
            word = f"{name}={value}"
        elif not equals and name not in own:
            word = f"{name}=true"
        if name in own or not name.startswith("--"):
            settings.append(word)
        else:
            overrides.append(word.removeprefix("--"))
    return settings + (["--overrides", json.dumps(overrides)] if overrides else [])
