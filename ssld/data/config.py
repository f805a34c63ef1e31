"""TODO."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ssld.common.settings import require


@dataclass(frozen=True)
class LoaderConfig:
    """How images are read."""

    workers: int = 4
    """Loader processes per training process; 0 loads in the training process itself."""
    max_unreadable: float = 0.1
    """Stop when more than this share of a source's files cannot be read."""

    def __post_init__(self) -> None:
        require(self.workers >= 0, f"data.workers is {self.workers}: give 0 or more")
        require(
            0 <= self.max_unreadable <= 1,
            f"data.max_unreadable is {self.max_unreadable}: give a share between 0 and 1",
        )


Interpolation = Literal["bilinear", "bicubic", "nearest"]


@dataclass(frozen=True)
class DataConfig(LoaderConfig):
    """Where images come from. A source is a folder of images, a Parquet manifest or tar shards."""

    labeled: str | list[str] = field(default_factory=list)
    """Labeled sources (T). Distillation never reads their labels for training."""
    unlabeled: str | list[str] = field(default_factory=list)
    """Unlabeled sources (U)."""
    unlabeled_share: float = 1.0
    """Share of each unlabeled source to train on; a smaller share is part of a larger one."""
    val: str | list[str] = field(default_factory=list)
    """Held-out sources for evaluation, never trained on."""
    holdout: int = 1000
    """Training images set aside for evaluation where `val` is empty, unlabeled ones if there are
    any; at most a twentieth of them. 0 trains on all and goes without a verdict."""
    fractions: list[float] | None = None
    """Share of the samples drawn from each source, labeled first; by default by size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("labeled", "unlabeled", "val"):
            value = getattr(self, name)
            object.__setattr__(self, name, [value] if isinstance(value, str) else list(value))
        require(self.holdout >= 0, f"data.holdout is {self.holdout}: give 0 or more")
        require(
            0 < self.unlabeled_share <= 1,
            f"data.unlabeled_share is {self.unlabeled_share}: give a share above 0, at most 1",
        )
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
class AugmentConfig:
    """How a training view is made from an image (SSLD section 4.2; ppcls RandCropImage)."""

    size: int | None = None
    """Side of a view in px; by default the student's input size."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Range of the crop's share of the image area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's width to height."""
    interpolation: Interpolation = "bilinear"
    """How the crop is resized to `size`."""
    antialias: bool = False
    """Low-pass filter before downscaling; the reference does not."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    policy: Literal["none", "autoaugment", "randaugment"] = "none"
    """The reference's AutoAugment (ImageNet policy, `ssld/data/autoaugment.py`) or torchvision's
    RandAugment, after crop and flip."""
    randaugment_ops: int = 2
    """Operations per image of RandAugment."""
    randaugment_magnitude: int = 9
    """Strength of RandAugment, 0 to 30."""

    def __post_init__(self) -> None:
        require(self.size is None or self.size > 0, f"augment.size is {self.size}: give px above 0")
        low, high = self.scale
        require(
            0 < low <= high <= 1, f"augment.scale is {self.scale}: give 0 < lowest <= highest <= 1"
        )
        low, high = self.ratio
        require(0 < low <= high, f"augment.ratio is {self.ratio}: give 0 < lowest <= highest")
        require(0 <= self.flip <= 1, f"augment.flip is {self.flip}: give a probability")
        require(
            self.randaugment_ops > 0 and 0 <= self.randaugment_magnitude <= 30,
            "augment.randaugment_ops must be above 0 and randaugment_magnitude from 0 to 30",
        )
