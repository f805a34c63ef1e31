"""The settings of `-m downstream.detection`, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from downstream.dense.config import (
    MAX_SIDE_PX,
    AnnotatedConfig,
    DownstreamConfig,
    PolicyConfig,
    require_scales,
)
from downstream.dense.networks import require_packages
from downstream.detection.networks import DETECTORS, PREFIXES
from ssld.common.settings import (
    IN_SHORT_HELP,
    Limits,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Settings,
    one_of,
    require,
    require_effect,
)
from ssld.engine.config import CheckpointConfig
from ssld.engine.run_folder import check_out


@dataclass(frozen=True)
class DetectorConfig(Settings, section="detector"):
    """The network on the backbone."""

    name: Annotated[str, one_of(DETECTORS)] = field(default="faster_rcnn", metadata=IN_SHORT_HELP)
    """faster_rcnn, retinanet, retinanet_bn, retinanet_nas_fpn, retinanet_spinenet, fcos, ttfnet,
    yolov3, yolov3_dcn or detr; what `downstream/detection/networks.py` has."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of its class, for example {anchor_sizes: [16, 32, 64, 128, 256]}."""


@dataclass(frozen=True)
class BoxAugmentConfig(PolicyConfig):
    """Mosaic, mixup, colour, expand, crop, policy, flip and resize, in this order (PaddleDetection
    `configs/yolov3/_base_/yolov3_reader.yml`, with which SSLD's YOLOv3 was trained). By default
    multi-scale resize and flip: detectron2 `configs/Base-RCNN-FPN.yaml`. Augment-S1 to S4 of Zoph
    et al. 2020 (section 3.1) are `resize: longer` with `scale` and `policy`."""

    resize: Literal["shorter", "square", "longer"] = "shorter"
    """shorter: the shorter side to one of `sizes`, keeping the aspect. square: both sides to it.
    longer: the longer side to `scale` of it, keeping the aspect; training views are squares of it,
    cut out where the image is larger and filled up where it is smaller (tensorflow/tpu
    `resize_and_crop_image`)."""
    sizes: list[PositiveInt] = field(
        default_factory=lambda: [640, 672, 704, 736, 768, 800], metadata=IN_SHORT_HELP
    )
    """Sides in px to draw from: for each image (shorter) or for each batch (square, longer)."""
    scale: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)
    """With `longer` the range of the factor that is drawn for each training image: scale jitter.
    S1 and S2 have 0.8 to 1.2, S3 and S4 0.5 to 2."""
    test_size: PositiveInt = field(default=800, metadata=IN_SHORT_HELP)
    """Side in px of evaluation views."""
    longest: int | None = 1333
    """With `shorter` the longer side's upper limit in px, which then decides; null: none."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    colour: Probability = 0.0
    """Probability of each of SSD's distortions (brightness, contrast, saturation, hue): 0.5."""
    expand: Annotated[float, Limits(lambda x: x >= 1, "a ratio of 1 or more")] = 1.0
    """SSD's zoom-out, for half of the images: up to so many times the sides; SSD: 4. 1 is off."""
    crop: bool = False
    """SSD's crop by its overlap with a box."""
    mosaic: Probability = 0.0
    """Probability of a mosaic: an image and three others of its source around a random point, each
    with its longer side at one of `sizes`, times a factor out of `scale` with `longer` (YOLOv4,
    section 3.3). YOLOX and Ultralytics: 1, with `longer` and a scale of 0.1 to 2, or 0.5 to 1.5."""
    mosaic_epochs: NonNegativeInt | None = None
    """Epochs with mosaics, the first ones; YOLOX: 285 of 300 (section 2.1). null: all."""
    mixup: NonNegativeFloat = 0.0
    """alpha of mixup with another image, Beta(alpha, alpha); YOLOv3: 1.5. 0 is off."""
    mixup_epochs: NonNegativeInt | None = None
    """Epochs with mixup, the first ones; YOLOv3: 250 of 270. null: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.sizes), "augment.sizes is empty: give one side in px, or several")
        require(
            self.longest is None or self.longest >= max(self.sizes),
            f"augment.longest is {self.longest}: give at least the largest of sizes "
            f"({max(self.sizes)}), or null",
        )
        require(
            self.resize != "longer" or self.longest in (None, BoxAugmentConfig.longest),
            f"augment.longest is {self.longest}, but augment.resize is longer: `sizes` says how "
            "long the longer side is; leave augment.longest out",
        )
        require_effect(
            self,
            ["mixup_epochs"],
            self.mixup > 0,
            "augment.mixup is 0, which is off: give its alpha, or leave this out",
        )
        require_effect(
            self,
            ["mosaic_epochs"],
            self.mosaic > 0,
            "augment.mosaic is 0, which is off: give its probability, or leave this out",
        )
        low, high = self.scale
        require(low <= high, f"augment.scale is {self.scale}: give smallest <= largest")
        require(
            self.resize == "longer" or low == high == 1,
            f"augment.scale is {self.scale}, but augment.resize is {self.resize}: set that to "
            "longer, or leave augment.scale out",
        )


@dataclass(frozen=True)
class BoxTestConfig(Settings, section="test"):
    """How held-out images are seen. Several views of an image are united (Data Distillation,
    arXiv:1712.04440, sections 4 and 6.1)."""

    scales: list[PositiveFloat] = field(default_factory=lambda: [1.0])
    """Factors of `augment.test_size` and `augment.longest` at which an image is seen. The boxes of
    keypoints and masks are those of the factor nearest to 1."""
    flip: bool = False
    """See it mirrored, too, at each scale."""
    merge: Literal["vote", "nms", "soft_nms"] = "vote"
    """What is made of the boxes of several views, where boxes alone are found. nms: of those of a
    class that overlap, the best. vote: the same, moved to the mean of those that overlap it nearly
    whole, weighted by score. soft_nms: overlapping ones are kept with lower scores."""
    nms_iou: Probability = 0.5
    """Overlap above which nms and vote keep the better box alone."""
    vote_iou: Probability = 0.8
    """Overlap from which a box votes on the place of a kept one (Detectron `config.py`,
    `TEST.BBOX_VOTE.VOTE_TH`)."""
    soft_nms_sigma: PositiveFloat = 0.5
    """soft_nms multiplies scores by exp(-IoU^2 / sigma) (Bodla et al. 2017: .5; Zoph et al.
    2020 with SpineNet: .3)."""
    oks_sigmas: PositiveFloat | list[PositiveFloat] | None = None
    """Of keypoint AP: by how much annotators differ in placing a keypoint, over the square root of
    the object's area; one number for all, or one of each. null: COCO's for people where the names
    are its own, else 0.05."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_scales(self.scales)

    @property
    def views(self) -> int:
        """How often an image is seen."""
        return len(self.scales) * (1 + self.flip)


@dataclass(frozen=True)
class DetectionCheckpointConfig(CheckpointConfig):
    """When training state is saved, and which is the best."""

    best: (
        Literal["ap", "ap50", "keypoint_ap", "keypoint_ap50", "mask_ap", "mask_ap50", "last"] | None
    ) = None
    """The metric on held-out images by which the checkpoint is chosen that `model/` holds; null:
    keypoint_ap, mask_ap or ap, by what the detector finds. last: whatever came last."""


@dataclass(frozen=True)
class BoxDataConfig(AnnotatedConfig):
    """Images with boxes: COCO's `FILE.json`, `FILE.json::IMAGES`, `data.yaml::SPLIT`, or a folder
    of VOC's, YOLO's, labelme's or CVAT's files, `DIR` or `DIR::SPLIT`; docs/formats.md has all."""


@dataclass(frozen=True)
class DetectionConfig(DownstreamConfig):
    """`python -m downstream.detection --config F.yaml --backbone NAME`: train a detector on a
    backbone, with human boxes."""

    detector: DetectorConfig = field(default_factory=DetectorConfig)
    data: BoxDataConfig = field(default_factory=BoxDataConfig)
    augment: BoxAugmentConfig = field(default_factory=BoxAugmentConfig)
    test: BoxTestConfig = field(default_factory=BoxTestConfig)
    checkpoint: DetectionCheckpointConfig = field(default_factory=DetectionCheckpointConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        name, best = self.detector.name, self.checkpoint.best
        finds = DETECTORS[name].finds
        known = [f"{prefix}{ap}" for prefix in ("", PREFIXES[finds]) for ap in ("ap", "ap50")]
        require(
            best in (None, "last", *known),
            f"checkpoint.best is {best}, but {name} finds {finds}: give one of "
            f"{', '.join(dict.fromkeys(known))}, last, or leave it out",
        )
        require(
            finds == "keypoints" or self.test.oks_sigmas is None,
            f"test.oks_sigmas is of keypoints, but {name} finds {finds}: leave it out",
        )
        largest = self.augment.test_size * max(self.test.scales)
        require(
            largest <= MAX_SIDE_PX,
            f"augment.test_size and test.scales make views of {largest:g} px: give smaller ones, "
            f"{MAX_SIDE_PX} px is the most",
        )


def check(config: DetectionConfig) -> None:
    """
    Raises:
        InputError: a package is not installed; whatever
            `ssld.engine.run_folder.check_out` finds.
    """
    require_installed(config)
    check_out(config)


def require_installed(config: DetectionConfig) -> None:
    """
    Raises:
        InputError: a package is not installed.
    """
    require_packages("detection", "faster_coco_eval", *DETECTORS[config.detector.name].packages)
