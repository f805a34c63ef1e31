"""The settings of `ssld recipe`; those of the stages are in its file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from ssld.common.settings import require


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
    """All further words: settings of the first stage, or of one that is named."""

    def __post_init__(self) -> None:
        require(bool(self.file), "no recipe is given: ssld recipe F.yaml")


def with_overrides(words: list[str]) -> list[str]:
    """The first word as --file, and what is no setting of `RecipeConfig` as --overrides."""
    words, own, rest, file = list(words), [], [], ""
    while words:
        word = words.pop(0)
        if word == "--out" and words:
            own += [word, words.pop(0)]
        elif word.partition("=")[0] in ("--out", "--overwrite", "--help", "-h"):
            own.append(word)
        elif not file and not rest and not word.startswith("-"):
            file = word
        else:
            rest.append(word)
    overrides = ["--overrides", json.dumps(rest)] if rest else []
    return [*(["--file", file] if file else []), *own, *overrides]
