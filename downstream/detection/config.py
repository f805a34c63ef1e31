"""The settings of `-m downstream.detection`, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from downstream.dense.config import AnnotatedConfig, DownstreamConfig
from downstream.dense.packages import require_packages
from downstream.detection.data.augment_config import BoxAugmentConfig
from downstream.detection.networks import DETECTORS
from ssld.common.settings import Settings, one_of
from ssld.engine.config import CheckpointConfig
from ssld.engine.run_folder import check_out


@dataclass(frozen=True)
class DetectorConfig(Settings, section="detector"):
    """The network on the backbone."""

    name: Annotated[str, one_of(DETECTORS)] = "faster_rcnn"
    """faster_rcnn, retinanet, fcos, ttfnet, yolov3, yolov3_dcn or detr; what
    `downstream/detection/networks.py` has."""
    args: dict[str, Any] = field(default_factory=dict)
    """Further arguments of its class, for example {anchor_sizes: [16, 32, 64, 128, 256]}."""


@dataclass(frozen=True)
class DetectionCheckpointConfig(CheckpointConfig):
    """When training state is saved, and which is the best."""

    best: Literal["ap", "ap50", "last"] = "ap"
    """The metric on held-out images by which the checkpoint is chosen that `model/` holds. last:
    whatever came last."""


@dataclass(frozen=True)
class BoxDataConfig(AnnotatedConfig):
    """Images with boxes: `FILE.json` (COCO), `FILE.json::IMAGES`, or a folder in VOC's or YOLO's
    layout, `DIR` or `DIR::SPLIT`."""


@dataclass(frozen=True)
class DetectionConfig(DownstreamConfig):
    """`python -m downstream.detection --config F.yaml --backbone NAME`: train a detector on a
    backbone, with human boxes."""

    detector: DetectorConfig = field(default_factory=DetectorConfig)
    data: BoxDataConfig = field(default_factory=BoxDataConfig)
    augment: BoxAugmentConfig = field(default_factory=BoxAugmentConfig)
    checkpoint: DetectionCheckpointConfig = field(default_factory=DetectionCheckpointConfig)


def check(config: DetectionConfig) -> None:
    """
    Raises:
        InputError: a package is not installed; whatever
            `ssld.engine.run_folder.check_out` finds.
    """
    require_packages("detection", "faster_coco_eval", *DETECTORS[config.detector.name].packages)
    check_out(config)
