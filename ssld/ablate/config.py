"""The settings of `ssld ablate`; those of the trials are in its file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ssld.common.settings import PositiveInt, Settings
from ssld.recipe.config import with_overrides


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
    """Folder for trials, tables and plots; by default the file's `out`."""
    devices: PositiveInt = 1
    """Trials at a time: each has a GPU of its own, or without any an equal share of the cores."""
    overwrite: bool = False
    """Start those stages anew whose settings have changed since."""
    overrides: list[str] = field(default_factory=list)
    """`name=value` for all recipes: what is given as --name value."""


def words(given: Sequence[str]) -> list[str]:
    """The command line as `ssld.cli` parses it."""
    return with_overrides(given, AblateConfig)
