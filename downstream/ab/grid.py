"""The settings of `ssld ab`, and its grid: backbone x learning rate x seed, for `ssld.ablate`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from ssld.ablate import grid
from ssld.ablate.config import AblateConfig
from ssld.ablate.grid import SEED, Ablation
from ssld.cli.commands import STAGES
from ssld.common.errors import InputError
from ssld.common.settings import PositiveInt, flat, require
from ssld.recipe.config import refuse_misspelt

RATES = ("same", "tuned")
"""Learning rate of the backbone: the head's, or the preset of distilled backbones, slower by stage
(see `downstream/backbone/backbone.py`)."""
RANDOM = "random:"
RATE = "backbone.lr"
GIVEN_BY_THE_GRID = (
    "out",
    SEED,
    RATE,
    "backbone.name",
    "backbone.pretrained",
    "backbone.checkpoint",
)
"""Settings that the file need not have, as the grid gives them."""


@dataclass(frozen=True, kw_only=True)
class ABConfig(AblateConfig):
    """`ssld ab --task T --config F.yaml --backbones A B --seeds 3 --out DIR`: is B a better start
    than A? Trains both with the same settings and seeds, at the same learning rate and at the tuned
    preset, and gives the differences with 95 % intervals, learning curves and the time that B takes
    to A's final score.

    F.yaml has settings of the task (`ssld transfer --help`), as they are or in a section of that
    name. Options that are none of these below are such settings, too: `--data.val DIR`. The same
    command goes on where it was stopped; more seeds keep what is finished.
    """

    file: str
    """F.yaml; `--config F.yaml` says the same."""
    task: Literal["transfer", "detection", "segmentation"]
    """What the backbones are fine-tuned for."""
    backbones: list[str]
    """Two names, A and B, as `backbone.name` takes them: of timm or the zoo, `hf-hub:` and
    `local-dir:` ids, run folders; or `random:` before any of these for fresh weights."""
    seeds: PositiveInt = 3
    """Runs of each backbone and learning rate; one gives no interval."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.backbones) == 2 and len(set(self.backbones)) == 2,
            f"backbones is {' '.join(self.backbones) or 'empty'}: give two different names: A B",
        )
        require(
            all(name.removeprefix(RANDOM) for name in self.backbones),
            f"backbones has {RANDOM!r} without a name: give {RANDOM}resnet50d, for example",
        )


def build(config: ABConfig, tree: dict[str, Any]) -> tuple[Ablation, str]:
    """The grid of an A/B, and what it was made of; nothing is written.

    Args:
        tree: what the file holds.

    Raises:
        InputError: a file that does not fit the task, or sets what the grid sets.
    """
    settings = _settings(config, tree)
    out = config.out or tree.get("out")
    grid_of = {
        "backbone": {name: _weights(name) for name in config.backbones},
        RATE: list(RATES),
        SEED: list(range(config.seeds)),
    }
    whole = {"out": out, config.task: settings, "grid": grid_of}
    ablation = grid.build(config.file, whole, config.out, config.overrides)
    given = "".join(f"#   --{word}\n" for word in config.overrides)
    head = f"# ssld ab --task {config.task} --config {config.file}\n{given}\n"
    return ablation, head + yaml.safe_dump(whole, sort_keys=False, allow_unicode=True)


def _settings(config: ABConfig, tree: dict[str, Any]) -> dict[str, Any]:
    """Of the task, in its section or alone, by full name; without those that the grid gives."""
    others = [key for key in tree if key in (*STAGES, "grid") and key != config.task]
    if others:
        raise InputError(
            f"{config.file} has a section {others[0]!r}: give settings of {config.task} only"
        )
    settings = flat(tree[config.task] or {} if config.task in tree else tree)
    if settings.get("backbone.checkpoint"):
        raise InputError(
            f"{config.file}: backbone.checkpoint would be the same for A and B; leave it out, and "
            "give run folders or `local-dir:` folders as --backbones"
        )
    return {key: value for key, value in settings.items() if key not in GIVEN_BY_THE_GRID}


def _weights(name: str) -> dict[str, Any]:
    fresh = name.startswith(RANDOM)
    return {"backbone.name": name.removeprefix(RANDOM), "backbone.pretrained": not fresh}


def words(argv: list[str]) -> list[str]:
    """The command line as `ssld.cli` takes it: names after --backbones as one list, --config as
    --file, and what is no setting of `ABConfig` as overrides."""
    own = [f"--{name}" for name in ABConfig.__dataclass_fields__ if name != "overrides"]
    options, overrides, rest = [], [], list(argv)
    while rest:
        word, equals, value = rest.pop(0).partition("=")
        values = [value] if equals else []
        while not equals and rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        word = "--file" if word == "--config" else word
        if word == "--backbones":
            options.append(f"{word}={json.dumps(values)}")
        elif word in own:
            options.append(f"{word}={' '.join(values)}" if values else word)
        else:
            overrides.append(f"{_name(word, own)}={' '.join(values) or 'true'}")
    if "--file" not in {word.partition("=")[0] for word in options}:
        raise InputError("--config is missing: give --config F.yaml, the settings of all runs")
    return options + ([f"--overrides={json.dumps(overrides)}"] if overrides else [])


def _name(word: str, own: list[str]) -> str:
    """Of a setting of the task."""
    if not word.startswith("--") or word == "--":
        raise InputError(f"{word!r} is no option: give --name value")
    name = word.removeprefix("--")
    refuse_misspelt(name, [option.removeprefix("--") for option in own])
    return name
