"""The settings of `ssld selftrain`; those of its stages are in its file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from downstream.backbone.config import with_backbone_name
from ssld.common.settings import OneOrSeveral, Settings, require
from ssld.recipe.config import with_overrides


@dataclass(frozen=True)
class SelftrainConfig(Settings):
    """`ssld selftrain F.yaml`: a teacher, its labels for unlabeled images, a student of both.

    F.yaml has `out`; `task`, detection or segmentation; `unlabeled`, sources of images as `ssld
    distill` reads them; `teacher`, settings of the task, or {run: RUN}, a trained one; `labels`,
    settings of `ssld pseudo-label`; and `student`, what differs from the teacher, and `start`:
    initial, the default, or teacher. `baseline: true` trains the student's settings on the human
    annotations alone, `oracle: true` on all of them (data.labeled_share 1); settings in the place
    of true say what differs.

    Options that are none of these below are settings of the teacher (`--data.val DIR`), or of the
    stage that they name (`--student.steps 300`). The same command goes on where it stopped.
    """

    file: str = ""
    """The recipe; the first word of the command."""
    out: str | None = None
    """Parent of the stages' folders; by default what the recipe says."""
    unlabeled: OneOrSeveral = field(default_factory=list)
    """Sources to label; by default what the recipe says."""
    overwrite: bool = False
    """Redo the stages whose settings changed, and what follows from them."""
    overrides: list[str] = field(default_factory=list)
    """`name=value`: settings of the teacher, or of a stage that is named."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.file), "no recipe is given: ssld selftrain F.yaml")


def words(given: Sequence[str]) -> list[str]:
    """The command line as `ssld.cli` parses it."""
    return with_overrides(with_backbone_name(given), SelftrainConfig)
