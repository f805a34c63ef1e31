"""The settings of `ssld pseudo-label`. Imports neither torch nor timm: `--help` answers at once."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from downstream.dense.config import ViewsConfig
from downstream.dense.generated import ANNOTATIONS, IMAGES, MANIFEST, MASKS
from ssld.common.errors import InputError
from ssld.common.settings import (
    IN_SHORT_HELP,
    Limits,
    NonNegativeInt,
    OneOrSeveral,
    PositiveInt,
    Probability,
    Settings,
    Share,
    require,
)
from ssld.engine.overwrite import inputs_inside

STATE = "labeling.json"
"""What the folder is made of; written first."""
WRITTEN = (
    *(MANIFEST, STATE, IMAGES, ANNOTATIONS, MASKS, "classes.json", "report.html", ".lock"),
    *("index", "predictions", "log.jsonl", "unreadable.jsonl", "held_out.txt"),
)
"""All that is ever in the folder, besides files that are being written."""

Count = Annotated[
    Literal["count"] | float,
    Limits(lambda x: x == "count" or 0 <= x <= 1, "count, or a score from 0 to 1"),
]


@dataclass(frozen=True)
class PseudoLabelConfig(Settings):
    """`ssld pseudo-label RUN --images SOURCES --out DIR`: annotate images with a trained network.

    The method is Data Distillation, arXiv:1712.04440. A source of images is a folder, a Parquet
    manifest or tar shards, local or remote.
    """

    run: str = field(default="", metadata=IN_SHORT_HELP)
    """Run folder of a detector or segmenter, or its `model` folder; the first word is taken for it.
    """
    images: OneOrSeveral = field(default_factory=list, metadata=IN_SHORT_HELP)
    """Sources of the images to annotate."""
    out: str = field(default="", metadata=IN_SHORT_HELP)
    """Folder of the set, and of what a repeated command goes on from."""
    labeled: OneOrSeveral = field(default_factory=list, metadata=IN_SHORT_HELP)
    """Sets with human annotations, whose counts are matched; by default the run's `data.train`."""
    val: OneOrSeveral = field(default_factory=list)
    """Held-out sets, which must not be among the images; by default the run's `data.val`."""
    test: ViewsConfig = field(default_factory=ViewsConfig)
    threshold: Count = field(default="count", metadata=IN_SHORT_HELP)
    """Least score of an instance. count: for each class as many instances per image as the labeled
    set has (Data Distillation, sections 4 and 6.1)."""
    keypoint_threshold: Count = "count"
    """Least score of a keypoint of such an instance. count: as many keypoints per instance as the
    labeled set has."""
    pixel_threshold: Probability = field(default=0.5, metadata=IN_SHORT_HELP)
    """Of a segmenter: pixels whose class has a lower probability are ignored (Zoph et al. 2020,
    arXiv:2006.06882, section 4)."""
    shard_size: PositiveInt = 64
    """Images per piece of work; what a kill can cost. Changes no result."""
    workers: NonNegativeInt = 4
    """Threads per process that read images; 0 reads in the process itself."""
    max_unreadable: Share = 0.1
    """Stop when more than this share of a source's files cannot be read."""
    overwrite: bool = field(default=False, metadata=IN_SHORT_HELP)
    """Replace what the folder holds of other settings, another network or other images; predictions
    that are still right are kept."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.run and self.images and self.out),
            "give a run, --images and --out: ssld pseudo-label RUN --images SOURCES --out DIR",
        )

    @property
    def deciding(self) -> dict[str, Any]:
        """The settings on which the set depends besides its images and the network."""
        names = ("threshold", "keypoint_threshold", "pixel_threshold")
        return {name: getattr(self, name) for name in names}


def check(config: PseudoLabelConfig) -> None:
    """What can be known before torch is imported.

    Raises:
        InputError: `out` cannot be the folder of this set.
    """
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise InputError(f"out {out} is a file: give a folder")
    inputs = {name: getattr(config, name) for name in ("run", "images", "labeled", "val")}
    inside = inputs_inside(out, inputs, tuple(inputs))
    if inside:
        raise InputError(
            f"out {out}: {inside[0][0]} {inside[0][1]} lies inside of it, where files are "
            "replaced: give another `out`, or move that"
        )
    nearest = next(x for x in (out.absolute(), *out.absolute().parents) if x.exists())
    for source in config.images:
        if os.path.isdir(source) and inputs_inside(Path(source), {"out": str(nearest)}, ("out",)):
            raise InputError(
                f"out {out} lies inside of images {source}, where its masks would be taken for "
                "images: give a folder elsewhere"
            )
    if not out.is_dir():
        return
    others = sorted(path.name for path in out.iterdir() if not _is_ours(path.name))
    if others and not (out / STATE).is_file():
        raise InputError(
            f"out {out} is not empty and not a folder of pseudo-labels: give another folder"
        )
    if others and config.overwrite:
        raise InputError(
            f"out {out}: --overwrite deletes what ssld pseudo-label wrote and nothing else, but "
            f"there is also {', '.join(others[:6])}; move that away, or give another folder"
        )


def _is_ours(name: str) -> bool:
    return name in WRITTEN or name.removeprefix(".").removesuffix(".tmp") in WRITTEN
