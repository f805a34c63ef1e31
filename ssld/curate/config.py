"""The settings of `ssld curate`. Imports neither torch nor OpenCV: `--help` answers at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from ssld.common.settings import (
    IN_SHORT_HELP,
    Limits,
    NonNegativeInt,
    OneOrSeveral,
    PositiveInt,
    Precision,
    Probability,
    Settings,
    Share,
    require,
)
from ssld.models.config import TeacherConfig

Policy = Literal["copy", "similar_view"]


@dataclass(frozen=True)
class DuplicatesConfig:
    """When a gallery image counts as a near-duplicate of a protected one (`matching.py`)."""

    policy: Policy = "copy"
    """copy: edits of the same photograph. similar_view: also weaker evidence, such as the next
    frame of a video; drops more that is harmless, and finds no other view for sure."""


@dataclass(frozen=True)
class SelectConfig(Settings, section="select"):
    """Which images are kept (SSLD section 3.3.4)."""

    k: PositiveInt = field(default=4000, metadata=IN_SHORT_HELP)
    """Images per predicted class, the surest first; short classes stay short."""
    assign_top_p: Annotated[
        int, Limits(lambda x: 1 <= x <= 10, "1 to 10, that many are stored")
    ] = 1
    """How many of its most probable classes an image competes in, 1 to 10 (Yalniz et al. 2019)."""
    min_score: Probability = field(default=0.0, metadata=IN_SHORT_HELP)
    """Least probability of the class (Noisy Student takes 0.3)."""
    exclude_keys: OneOrSeveral = field(default_factory=list)
    """Sources, or text files with one key a line: gallery images of these names are left out. A
    key is a file name without folders and extension, n01440764_10026."""


@dataclass(frozen=True)
class CurateConfig(Settings):
    """`ssld curate`: choose unlabeled images with a teacher, near-duplicates of protected images
    out.

    A source is a folder of images, a table, a list, a zip archive or tar shards, local or remote.
    """

    out: str
    """Folder for the tables, the report and what a resumed command goes on from."""
    gallery: OneOrSeveral
    """Sources to choose from."""
    protected: OneOrSeveral
    """Sources of evaluation images that nothing may leak from."""
    labeled: OneOrSeveral = field(default_factory=list, metadata=IN_SHORT_HELP)
    """Labeled sources: their files are left out of the selection, and the teacher must have as many
    classes."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """Scores the gallery; without one, near-duplicates are found all the same."""
    duplicates: DuplicatesConfig = field(default_factory=DuplicatesConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    batch_size: PositiveInt = field(default=64, metadata=IN_SHORT_HELP)
    """Images per forward pass of the teacher, per process."""
    precision: Precision = "fp32"
    """Number format of the teacher's forward pass."""
    workers: NonNegativeInt = field(default=4, metadata=IN_SHORT_HELP)
    """Processes per training process that read and match images; 0 does it in the process itself.
    """
    engine: Literal["processes", "ray"] = "processes"
    """ray: spread reading and matching over a Ray cluster instead (pip install 'ssld[ray]')."""
    shard_size: PositiveInt = 4096
    """Images per piece of work; what a kill can cost. Changes no result."""
    max_unreadable: Share = 0.1
    """Stop when more than this share of a source's files cannot be read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.gallery), "gallery is empty: name at least one source of images")
        require(
            bool(self.protected),
            "protected is empty, which would protect nothing: name the images that you evaluate on",
        )
        require(
            self.teacher.batch_norm == "eval",
            "teacher.batch_norm is batch: a score would depend on the other images; use eval",
        )
        require(
            self.teacher.micro_batch is None,
            "teacher.micro_batch has no use here: set batch_size to what fits",
        )

    @property
    def has_teacher(self) -> bool:
        return bool(self.teacher.arch or self.teacher.checkpoint)


@dataclass(frozen=True)
class ExplainConfig:
    """`ssld curate explain PATH`: why an image was kept or dropped."""

    path: str
    """The image, as the tables name it, or the end of its path."""
    out: str
    """Folder of a curation."""


def with_own_settings(words: list[str]) -> list[str]:
    """`report --out OUT` takes its settings from OUT."""
    names = [word.partition("=")[0] for word in words]
    if "--out" not in names or "--config" in names or "--gallery" in names:
        return words
    at = names.index("--out")
    out = words[at].partition("=")[2] or "".join(words[at + 1 : at + 2])
    return ["--config", str(Path(out) / "config.yaml"), *words]
