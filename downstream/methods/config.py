"""The settings of `ssld methods`; those of the runs are in its file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from downstream.backbone.config import with_backbone_name
from ssld.common.settings import Limits, OneOrSeveral, PositiveInt, Settings, require
from ssld.recipe.config import joined, with_overrides

SUPERVISED, ORACLE = "supervised", "oracle"
"""Without unlabeled images: trained on the labeled share, and on all labels."""
LEARNED = ("data_distillation", "rethinking", "sed")
"""With them: arXiv:1712.04440, arXiv:2006.06882 and Guo et al. 2022."""
METHODS = (SUPERVISED, *LEARNED, ORACLE)
LISTS = ("--methods", "--shares", "--unlabeled")
"""Options that take several words."""
LabelShare = Annotated[float, Limits(lambda x: 0 < x < 1, "a share between 0 and 1")]


@dataclass(frozen=True)
class MethodsConfig(Settings):
    """`ssld methods F.yaml --shares 0.1 0.3 --seeds 3`: which way to learn from unlabeled images is
    the best with these images, by how much, how sure is that, and what does it cost?

    F.yaml has `out`; `task`, detection or segmentation; `unlabeled`, sources of images as `ssld
    distill` reads them; and `supervised`, settings of the task for all runs. Of a method it may
    have a section with what differs: data_distillation and rethinking {labels: settings of `ssld
    pseudo-label`, student: settings of the task}, sed {settings of `ssld sed`}.

    Of each share and seed all methods have the same labeled images, and as many steps; the
    supervised run is the teacher of data_distillation and rethinking. Options that are none of
    these below are settings of all runs (`--data.val DIR`), or of the section that they name
    (`--rethinking.labels.threshold 0.4`). The same command goes on where it stopped.
    """

    file: str = ""
    """The first word of the command."""
    out: str | None = None
    """Parent of all runs; by default what the file says."""
    methods: list[str] = field(default_factory=lambda: list(METHODS))
    """Some of supervised, data_distillation, rethinking, sed and oracle."""
    shares: list[LabelShare] = field(default_factory=lambda: [0.1])
    """Of the labels."""
    seeds: PositiveInt = 3
    """Runs of each method and share; one gives no interval."""
    unlabeled: OneOrSeveral = field(default_factory=list)
    """Sources of images; by default what the file says."""
    overwrite: bool = False
    """Redo what has other settings now, and what follows from it."""
    overrides: list[str] = field(default_factory=list)
    """`name=value`: settings of all runs, or of a section that is named."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.file), "no file is given: ssld methods F.yaml")
        unknown = [name for name in self.methods if name not in METHODS]
        require(
            not unknown, f"methods has {''.join(unknown[:1])}: give some of {', '.join(METHODS)}"
        )
        require(
            bool(set(self.methods) & set(LEARNED)),
            f"methods is {' '.join(self.methods)}: give at least one of {', '.join(LEARNED)}",
        )
        for name, given in (("methods", self.methods), ("shares", self.shares)):
            require(
                0 < len(given) == len(set(given)),
                f"{name} is {' '.join(map(str, given)) or 'empty'}: give each once",
            )


def words(given: Sequence[str]) -> list[str]:
    """The command line as `ssld.cli` parses it; what follows LISTS as one list each."""
    merged: list[str] = []
    rest = list(given)
    while rest:
        word = rest.pop(0)
        values: list[str] = []
        while word in LISTS and rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        several = values and not values[0].startswith("[")
        listed = f"[{', '.join(values)}]" if word == "--shares" else json.dumps(values)
        merged += [f"{word}={listed}"] if several else [word, *values]
    return with_overrides(with_backbone_name(list(joined(merged))), MethodsConfig)
