"""The settings of `ssld bench` and `ssld plan`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path

from ssld.cli.commands import LATER_STAGES
from ssld.common.errors import InputError
from ssld.common.paths import check_file, check_inputs
from ssld.common.settings import (
    IN_SHORT_HELP,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    require,
)
from ssld.common.settings_file import read_settings
from ssld.distill.config import DistillConfig, StoredClasses
from ssld.recipe.config import joined

OTHER_TASKS = {"detector": "detection", "segmenter": "segmentation", "transfer": "transfer"}
"""What is planned by a command of its own, by a key that only its files have."""


@dataclass(frozen=True)
class BenchConfig(DistillConfig):
    """`ssld bench`: how fast the parts of a distillation are, alone and together.

    Takes the settings of `ssld distill`; writes nothing into `out`.
    """

    seconds: PositiveFloat = 10.0
    """Length of each measurement."""
    json: str | None = field(default=None, metadata=IN_SHORT_HELP)
    """Also write the result to this file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._refuse_students(
            "measure each alone, as `student`: a step of all takes the teacher's time once, and "
            "each student's own"
        )


@dataclass(frozen=True)
class PlanConfig(BenchConfig):
    """`ssld plan`: is everything right, and what will it cost?

    Takes the settings of `ssld distill`, or a recipe as its first word, of which it plans the first
    stage and checks the classes of the others; writes nothing into `out`. Exit code 1 when it finds
    a problem.
    """

    price_per_hour: NonNegativeFloat | None = field(default=None, metadata=IN_SHORT_HELP)
    """What an hour of all devices costs, in any currency."""
    images: PositiveInt = 2000
    """Labeled images, at most, on which the teacher is tried."""
    views: PositiveInt | None = None
    """Views of each image in the stored labels that are projected, as `ssld labels build` would
    store them; by default one for each epoch."""
    top_k: StoredClasses = 10
    """Classes of a view in them."""
    recipe: str | None = None
    """The recipe of which these are the settings of the first stage: the first word of the
    command."""
    overrides: list[str] = field(default_factory=list)
    """What `ssld recipe` would be told besides."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not (self.labels and self.views),
            "views are of labels that are still to be built, and those of `labels` have theirs: "
            "leave one of the two out",
        )


def check(config: BenchConfig) -> None:
    """
    Raises:
        InputError: a source or weights are not there, or `json` is a file that is not replaced.
    """
    check_inputs(config)
    check_file("json", config.json, "plan" if isinstance(config, PlanConfig) else "bench")


def with_recipe(words: list[str]) -> list[str]:
    """Of the words that follow a recipe: those for its first stage and the plan as they are, and
    those that `ssld recipe` would be given as --overrides.

    Raises:
        InputError: the file is of a network that has a plan of its own.
    """
    _refuse_other_tasks(words)
    if not words or words[0].startswith("-"):
        return words
    own = {x.name for x in fields(PlanConfig)} - {x.name for x in fields(DistillConfig)}
    options = [word for word in joined(words[1:]) if word.startswith("--")]
    overrides = [word[2:] for word in options if word[2:].partition("=")[0] not in own]
    told = [f"--overrides={json.dumps(overrides)}"] if overrides else []
    for_plan = [
        word for word in joined(words[1:]) if word[2:].partition(".")[0] not in LATER_STAGES
    ]
    return [words[0], "--recipe", words[0], *told, *for_plan]


def _refuse_other_tasks(words: list[str]) -> None:
    """A file of `ssld detection` would be told of a key that is unknown, with others of its own."""
    first = [f"--config={words[0]}"] if words and not words[0].startswith("-") else []
    for word in (*first, *joined(words)):
        name, _, file = word.partition("=")
        if name != "--config" or not Path(file).is_file():
            continue
        task = next(
            (task for key, task in OTHER_TASKS.items() if key in read_settings(Path(file))), None
        )
        if task:
            option = "" if task == "transfer" and first else "--config "
            raise InputError(f"{file} is of ssld {task}: ssld plan {task} {option}{file} ...")
