"""The settings of `ssld recipe`; those of the stages are in its file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from ssld.cli.commands import DOWNSTREAM, FIRST_STAGES, LATER_STAGES, STAGES
from ssld.common.errors import InputError, did_you_mean
from ssld.common.settings import require

Made = TypeVar("Made")


@dataclass(frozen=True)
class RecipeConfig:
    """`ssld recipe F.yaml`: distill, finetune and fix, one after the other.

    F.yaml has `out` and a section per stage: distill (or supervised), then finetune, fix or both,
    each with settings of that command; what a later one does not say is as in the stage before. Or
    one section transfer, detection or segmentation.
    Options that are none of these below are settings of the first stage (`--data.labeled DIR`), or
    of the stage that they name (`--finetune.epochs 10`). The same command goes on where it stopped.
    """

    file: str = ""
    """The recipe; the first word of the command."""
    out: str | None = None
    """Parent of the stages' run folders; by default what the recipe says."""
    overwrite: bool = False
    """Redo the stages whose settings changed, and those after them."""
    overrides: list[str] = field(default_factory=list)
    """`name=value`: settings of the first stage, or of one that is named."""

    def __post_init__(self) -> None:
        require(bool(self.file), "no recipe is given: ssld recipe F.yaml")


LENGTHS = {"epochs": "steps", "steps": "epochs"}
"""Each is given instead of the other."""
SWITCHES = ("--overwrite", "--resume")
"""Options that may stand without a value."""


def words(given: Sequence[str]) -> list[str]:
    """The command line as `ssld.cli` parses it."""
    return with_overrides(given, RecipeConfig)


def with_overrides(given: Sequence[str], config_class: type) -> list[str]:
    """The first word that is no option as --file, and options that are no settings of the class as
    --overrides, a list of `name=value`.

    Raises:
        InputError: one of these is a setting of the class, misspelt.
    """
    own = {*SWITCHES, *(f"--{field.name}" for field in fields(config_class))} - {"--resume"}
    kept, overrides = [], []
    for word in joined(given):
        option = word.startswith("--") and word.partition("=")[0] not in own
        (overrides if option else kept).append(word)
    file = next((word for word in kept if not word.startswith("-")), None)
    if file is not None:
        kept[kept.index(file)] = f"--file={file}"
    for word in overrides:
        refuse_misspelt(word[2:].partition("=")[0], [option.lstrip("-") for option in own])
    overrides = [word[2:] if "=" in word else f"{word[2:]}=true" for word in overrides]
    return kept + ([f"--overrides={json.dumps(overrides)}"] if overrides else [])


def refuse_misspelt(name: str, known: Sequence[str]) -> None:
    """
    Args:
        name: is none of `known`, what only the command line has: a command's own options, or
            sections before a dot.

    Raises:
        InputError: it is nearly one.
    """
    hint = did_you_mean(name, known, cutoff=0.8)
    if hint and "." not in name:
        raise InputError(f"--{name}: unknown setting {name!r}{hint}")


def blamed(file: str, overrides: Sequence[str], make: Callable[[list[str]], Made]) -> Made:
    """`make(overrides)`; what is wrong with one of them is said to be there, not in the file.

    Args:
        file: what messages begin with.
        overrides: `name=value`, of a command line.
        make: without an effect, as it is asked again to find out.

    Raises:
        InputError: of `make`.
    """

    def refusal(of: list[str]) -> str | None:
        try:
            make(of)
        except InputError as error:
            return str(error)
        return None

    given = list(overrides)
    try:
        return make(given)
    except InputError as error:
        message = str(error)
        reason = message[len(file) :].partition(": ")[2] if message.startswith(file) else message
        for i, override in enumerate(given):
            name = override.partition("=")[0]
            # What is missing without an override is no reason to blame that one.
            if _names(name, reason) and refusal(given[:i] + given[i + 1 :]) != message:
                said = reason if reason.startswith("--") else f"--{name}: {reason}"
                raise InputError(said) from error
        raise


def _names(name: str, text: str) -> bool:
    """Whether a text has the name of a setting, or a part of it."""
    parts = name.split(".")
    ends = range(1, len(parts) + 1)
    known = {".".join(parts[i:j]) for j in ends for i in range(j)}
    return not {x.rstrip(".") for x in re.findall(r"[\w.]+", text)}.isdisjoint(known)


def joined(given: Sequence[str]) -> Iterator[str]:
    """Words of a command line, each option with its value as one: `--name=value`."""
    left = list(given)
    while left:
        word = left.pop(0)
        following = left[0] if left else "--"
        takes = following in ("true", "false") if word in SWITCHES else following[:2] != "--"
        joins = word.startswith("--") and "=" not in word and takes
        yield f"{word}={left.pop(0)}" if joins else word


def sections(
    file: str, tree: dict[str, Any], out: str | None, *further: str
) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The folder of a recipe, and the settings of its stages in their order.

    Args:
        tree: what `file` holds.
        out: instead of the one in the file.
        further: sections that are no stages.

    Raises:
        InputError: an unknown section, a wrong order, no `out`, what is no settings.
    """
    stages = [name for name in tree if name not in ("out", *further)]
    unknown = [name for name in stages if name not in STAGES]
    if unknown == ["grid"]:
        raise InputError(f"{file} has a grid: it is for `ssld ablate`")
    if unknown:
        known = (*STAGES, "out", *further)
        hint = did_you_mean(unknown[0], known, cutoff=0.5) or f"; give {', '.join(known)}"
        raise InputError(f"{file}: {unknown[0]!r} is no stage{hint}")
    alone = len(stages) == 1 and stages[0] in DOWNSTREAM
    later = [name for name in LATER_STAGES if name in stages]
    if not alone and (not stages or stages[0] not in FIRST_STAGES or stages[1:] != later):
        raise InputError(
            f"{file}: the stages are {', '.join(stages) or 'none'}; "
            f"give {' or '.join(FIRST_STAGES)}, then {', '.join(LATER_STAGES)} or both; "
            f"or one of {', '.join(DOWNSTREAM)} alone"
        )
    folder = out or tree.get("out")
    if not folder:
        raise InputError(f"{file}: out is missing; name a folder in it or with --out")
    if not isinstance(folder, str):
        raise InputError(f"{file}: out is {folder!r}; name a folder")
    for name in stages:
        if not isinstance(tree[name], dict | None):
            raise InputError(f"{file}: {name} is {tree[name]!r}; give `name: value` lines, or {{}}")
    return Path(folder), {name: tree[name] or {} for name in stages}
