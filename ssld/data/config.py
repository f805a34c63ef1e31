"""Settings of images: sources, loader processes and augmentation. Imports neither torch nor PIL."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

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


@dataclass(frozen=True)
class LoaderConfig(Settings, section="data"):
    """How images are read."""

    workers: NonNegativeInt = 4
    """Loader processes per training process; 0 loads in the training process itself."""
    max_unreadable: Share = 0.1
    """Stop when more than this share of a source's files cannot be read."""


Interpolation = Literal["bilinear", "bicubic", "nearest"]


@dataclass(frozen=True)
class DataConfig(LoaderConfig):
    """Where images come from. A source is a folder of images, a table (Parquet, Arrow), a list
    (CSV, text), a zip archive or tar shards; see docs/formats.md."""

    labeled: OneOrSeveral = field(default_factory=list, metadata=IN_SHORT_HELP)
    """Labeled sources (T). Distillation never reads their labels for training."""
    unlabeled: OneOrSeveral = field(default_factory=list, metadata=IN_SHORT_HELP)
    """Unlabeled sources (U)."""
    unlabeled_share: Annotated[
        float, Limits(lambda x: 0 < x <= 1, "a share above 0, at most 1")
    ] = 1.0
    """Share of each unlabeled source to train on; a smaller share is part of a larger one."""
    val: OneOrSeveral = field(default_factory=list, metadata=IN_SHORT_HELP)
    """Held-out sources for evaluation, never trained on."""
    holdout: NonNegativeInt = 1000
    """Training images set aside for evaluation where `val` is empty, unlabeled ones if there are
    any; at most a twentieth of them. 0 trains on all and goes without a verdict."""
    fractions: list[float] | None = None
    """Share of the samples drawn from each source, labeled first; by default by size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fractions is not None:
            sources = len(self.labeled) + len(self.unlabeled)
            require(
                len(self.fractions) == sources
                and min(self.fractions) >= 0
                and sum(self.fractions) > 0,
                f"data.fractions is {self.fractions}: give one share >= 0 for each of the "
                f"{sources} sources in data.labeled and data.unlabeled, not all 0",
            )


@dataclass(frozen=True)
class AugmentConfig(Settings, section="augment"):
    """How a training view is made from an image (SSLD section 4.2; ppcls RandCropImage)."""

    size: PositiveInt | None = field(default=None, metadata=IN_SHORT_HELP)
    """Side of a view in px; by default the student's input size."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Range of the crop's share of the image area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's width to height."""
    interpolation: Interpolation = "bilinear"
    """How the crop is resized to `size`."""
    antialias: bool = False
    """Low-pass filter before downscaling; the reference does not."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    policy: Literal["none", "autoaugment", "randaugment"] = "none"
    """The reference's AutoAugment (ImageNet policy, `ssld/data/autoaugment.py`) or torchvision's
    RandAugment, after crop and flip."""
    randaugment_ops: PositiveInt = 2
    """Operations per image of RandAugment."""
    randaugment_magnitude: Annotated[int, Limits(lambda x: 0 <= x <= 30, "0 to 30")] = 9
    """Strength of RandAugment, 0 to 30."""
    erasing: Probability = 0.0
    """Probability of random erasing, last of all: a rectangle of 2 to 33 % of the view becomes
    noise (Zhong et al. 2017, arXiv:1708.04896; timm's `reprob`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.scale
        require(
            0 < low <= high <= 1, f"augment.scale is {self.scale}: give 0 < lowest <= highest <= 1"
        )
        low, high = self.ratio
        require(0 < low <= high, f"augment.ratio is {self.ratio}: give 0 < lowest <= highest")
