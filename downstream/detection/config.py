"""The settings of `-m downstream.detection`, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from downstream.dense.config import AnnotatedConfig, DownstreamConfig
from downstream.dense.packages import BY_HEAD, require_packages
from downstream.detection.data.augment_config import BoxAugmentConfig
from ssld.engine.config import CheckpointConfig
from ssld.engine.run_folder import check_out


@dataclass(frozen=True)
class DetectorConfig:
    """The network on the backbone."""

    name: Literal["faster_rcnn", "retinanet", "fcos", "ttfnet", "yolov3", "yolov3_dcn", "detr"] = (
        "faster_rcnn"
    )
    """Which one; `downstream/detection/networks.py` names their files."""
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
        InputError: a package is not installed; whatever `ssld.engine.run_folder.check_out` finds.
    """
    require_packages("detection", "faster_coco_eval", *BY_HEAD.get(config.detector.name, ()))
    check_out(config)
