"""A recipe: the settings of its stages, checked before the first of them runs.

This file imports neither torch nor timm, so that a grid of recipes is checked at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ssld.cli.commands import STAGES, stage_of
from ssld.cli.parse import parse_section
from ssld.common.errors import InputError
from ssld.common.paths import check_inputs
from ssld.common.settings import plain
from ssld.common.settings_file import read_settings
from ssld.distill.config import ClassifierConfig
from ssld.distill.parent_run import settings_after
from ssld.engine.config import LoopConfig
from ssld.recipe.config import LENGTHS, RecipeConfig, blamed, sections
from ssld.recipe.stage_folder import StagePlace


@dataclass(frozen=True)
class Recipe:
    """A recipe as it is to be run."""

    file: str
    out: Path
    stages: list[str]
    settings: dict[str, dict[str, Any]]
    """Of each stage, as the file says them."""
    overrides: dict[str, list[str]]
    """Of each stage, as words of a command line."""
    overwrite: bool = False
    """Redo the stages whose settings changed, and those after them."""

    def config(self, stage: str, before: dict[str, Any], taught: bool) -> LoopConfig:
        """The settings of a stage.

        Args:
            before: those of the stage before, empty for the first.
            taught: whether that one has a teacher.

        Raises:
            InputError: an unknown key or a value that is not allowed.
        """
        run = str(self.out / self.stages[self.stages.index(stage) - 1])
        words = [*self.overrides[stage], f"--out={self.out / stage}"]
        words += [f"--run={run}"] if before else []
        given = {word.partition("=")[0].removeprefix("--") for word in words}
        # A length on the command line takes the place of the file's.
        tree = {key: x for key, x in self.settings[stage].items() if LENGTHS.get(key) not in given}

        def defaults(given: dict[str, Any]) -> dict[str, Any]:
            return settings_after(stage, before, taught, run, given) if before else {}

        return parse_section(
            f"ssld {stage}",
            stage_of(stage)[0],
            words,
            settings=(f"{self.file}, {stage}", tree),
            defaults=defaults,
        )

    def configs(self) -> Iterator[tuple[str, LoopConfig]]:
        """Each stage and its settings, with what those before will have resolved still open."""
        before: dict[str, Any] = {}
        taught = False
        for stage in self.stages:
            config = self.config(stage, before, taught)
            yield stage, config
            before = plain(config)
            taught = isinstance(config, ClassifierConfig) and bool(
                config.taught_by or getattr(config, "labels", None)
            )


def as_asked(config: RecipeConfig) -> Recipe:
    """The recipe that a command line names; see `open_recipe`."""
    tree = read_settings(Path(config.file))

    def read(overrides: list[str]) -> Recipe:
        return open_recipe(config.file, tree, config.out, overrides)

    recipe = blamed(config.file, config.overrides, read)
    return replace(recipe, overwrite=config.overwrite)


def open_recipe(
    file: str, tree: dict[str, Any], out: str | None, overrides: Sequence[str]
) -> Recipe:
    """Read a recipe and check the settings of all its stages; nothing is written.

    Args:
        tree: what `file` holds.
        out: instead of the one in the file.

    Raises:
        InputError: an unknown stage, a wrong order, a setting that is not allowed.
    """
    folder, settings = sections(file, tree, out)
    for name, content in settings.items():
        for key in ("out", "run", "resume", "overwrite"):
            if key in content:
                raise InputError(f"{file}, {name}: {key} is the recipe's to decide; leave it out")
    recipe = Recipe(file, folder, list(settings), settings, _overrides(list(settings), overrides))
    for stage, config in recipe.configs():
        if getattr(config, "students", None):
            raise InputError(
                f"{file}, {stage}: a recipe is of one student; give `student`, or `students` to "
                "`ssld distill --config`"
            )
        check_inputs(config, f"{file}, {stage}")
        StagePlace(folder, stage).check()
    return recipe


def _overrides(stages: list[str], overrides: Sequence[str]) -> dict[str, list[str]]:
    """Each `name=value` as an option of the stage that it names, else of the first."""
    options: dict[str, list[str]] = {stage: [] for stage in stages}
    for override in overrides:
        stage, dot, rest = override.partition(".")
        if dot and stage in STAGES and stage not in options:
            raise InputError(f"--{override}: the recipe has no stage {stage}")
        named = dot and stage in options
        options[stage if named else stages[0]].append(f"--{rest if named else override}")
    return options
