"""The settings of `-m downstream.segmentation`, as frozen dataclasses."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from typing import Annotated, Literal

from downstream.dense.config import (
    AnnotatedConfig,
    DownstreamConfig,
    PolicyConfig,
    require_scales,
)
from downstream.dense.networks import require_packages
from downstream.segmentation.networks import SEGMENTERS
from ssld.common.settings import (
    IN_SHORT_HELP,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Probability,
    Settings,
    ShareBelowOne,
    one_of,
    require,
)
from ssld.engine.config import CheckpointConfig
from ssld.engine.run_folder import check_out


@dataclass(frozen=True)
class SegmenterConfig(Settings, section="segmenter"):
    """The network on the backbone."""

    name: Annotated[str, one_of(SEGMENTERS)] = field(default="fcn", metadata=IN_SHORT_HELP)
    """fcn, ocrnet, deeplabv3plus, nas_fpn, unet or segformer; what
    `downstream/segmentation/networks.py` has."""


@dataclass(frozen=True)
class MaskAugmentConfig(PolicyConfig):
    """Policy, scale, crop, flip and colour, in this order: SSLD section 4.6 and the reference's
    recipe (PaddleSeg, configs/_base_/cityscapes.yml). Augment-S1 to S4 of Zoph et al. 2020
    (section 3.1) are `scale_of: crop` with `scale` and `policy`."""

    crop: tuple[int, int] = field(default=(512, 1024), metadata=IN_SHORT_HELP)
    """Height and width in px of a training view."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest factor by which an image is resized before it is cropped."""
    scale_of: Literal["image", "crop"] = "image"
    """What `scale` is a factor of: the image's own size, or the largest with which the whole image
    fits into `crop` (tensorflow/tpu `resize_and_crop_image`)."""
    scale_step: float | None = 0.25
    """Distance between the factors that are drawn from; null: any factor in between."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    colour: ShareBelowOne = 0.4
    """Largest change of brightness, contrast and saturation, as a share; 0 leaves colours alone,
    the hue, too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            len(self.crop) == 2 and min(self.crop) > 0,
            f"augment.crop is {self.crop}: give height and width in px, both above 0",
        )
        low, high = self.scale
        require(0 < low <= high, f"augment.scale is {self.scale}: give 0 < smallest <= largest")
        if self.scale_step is not None:
            steps = (high - low) / self.scale_step if self.scale_step > 0 else 0.5
            require(
                abs(steps - round(steps)) < 1e-6,
                f"augment.scale_step is {self.scale_step}: give a number above 0 that divides "
                f"{high - low:g}, the range of augment.scale, or null for any factor in it",
            )

    def factor(self, draw: random.Random) -> float:
        """One of the steps, each as likely (PaddleSeg, ResizeStepScaling), or any in between."""
        low, high = self.scale
        if self.scale_step is None:
            return draw.uniform(low, high)
        steps = round((high - low) / self.scale_step)
        return draw.choice([low + i * self.scale_step for i in range(steps + 1)])


@dataclass(frozen=True)
class SegmentationCheckpointConfig(CheckpointConfig):
    """When training state is saved, and which is the best."""

    best: Literal["miou", "pixel_accuracy", "last"] = "miou"
    """The metric on held-out images by which the checkpoint is chosen that `model/` holds. last:
    whatever came last."""


@dataclass(frozen=True)
class MaskDataConfig(AnnotatedConfig):
    """Images with masks: a folder of images and masks, Cityscapes', VOC's or labelme's, `DIR` or
    `DIR::SPLIT`, or COCO's `FILE.json`, `FILE.json::IMAGES`; docs/formats.md has them all."""


@dataclass(frozen=True)
class TestConfig(Settings, section="test"):
    """How held-out images are seen."""

    crop: tuple[PositiveInt, PositiveInt] | None = None
    """Height and width in px of windows that slide over an image; null: the whole image at once."""
    stride: tuple[PositiveInt, PositiveInt] | None = None
    """Distance of the windows in px; by default two thirds of `crop`."""
    scales: list[PositiveFloat] = field(default_factory=lambda: [1.0])
    """Factors of the size at which an image is seen; their probabilities are averaged."""
    flip: bool = False
    """See it mirrored, too."""

    @property
    def views(self) -> int:
        """How often an image is seen."""
        return len(self.scales) * (1 + self.flip)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_scales(self.scales)
        require(
            self.stride is None or self.crop is not None,
            "test.stride is given without test.crop: give both, or neither",
        )
        require(
            not (self.crop and self.stride)
            or (self.stride[0] <= self.crop[0] and self.stride[1] <= self.crop[1]),
            f"test.stride is {self.stride} and test.crop {self.crop}: windows would leave pixels "
            "out; give a stride of at most the crop",
        )


@dataclass(frozen=True)
class MaskLossConfig(Settings, section="loss"):
    """What is minimised besides the mean cross-entropy of pixels."""

    class_weights: dict[str, float] = field(default_factory=dict)
    """How often a pixel of a class counts in the cross-entropy, by the class's name:
    `{pole: 5, sign: 5}`; 1 for the others."""
    dice_weight: NonNegativeFloat = 0.0
    """Of the Dice loss (Milletari et al. 2016, V-Net, section 3) of the main output; 0: none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, weight in self.class_weights.items():
            require(
                0 <= weight < math.inf,
                f"loss.class_weights.{name} is {weight}: give 0 or more",
            )


@dataclass(frozen=True)
class SegmentationConfig(DownstreamConfig):
    """`python -m downstream.segmentation --config F.yaml --backbone NAME`: train a segmenter on a
    backbone, with human masks."""

    segmenter: SegmenterConfig = field(default_factory=SegmenterConfig)
    data: MaskDataConfig = field(default_factory=MaskDataConfig)
    augment: MaskAugmentConfig = field(default_factory=MaskAugmentConfig)
    test: TestConfig = field(default_factory=TestConfig)
    loss: MaskLossConfig = field(default_factory=MaskLossConfig)
    checkpoint: SegmentationCheckpointConfig = field(default_factory=SegmentationCheckpointConfig)


def check(config: SegmentationConfig) -> None:
    """
    Raises:
        InputError: a package is not installed; whatever
            `ssld.engine.run_folder.check_out` finds.
    """
    require_installed(config)
    check_out(config)


def require_installed(config: SegmentationConfig) -> None:
    """
    Raises:
        InputError: a package is not installed.
    """
    require_packages("segmentation", *SEGMENTERS[config.segmenter.name].packages)
