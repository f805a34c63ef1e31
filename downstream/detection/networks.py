"""The detectors by name. Each is a network with

    stride            images are padded (right and bottom, with 0) to a multiple of it
    backbone          a `downstream.backbone.backbone.Backbone`
    score_threshold   detections need a higher score
    forward(images, sizes, targets=None)
        images   float32 [b, 3, H, W], normalised as the backbone wants
        sizes    int64 [b, 2], the (h, w) of each that is picture, not padding
        targets  per image {"boxes": float32 [n, 4] xyxy px, "labels": int64 [n] from 0}, n >= 0
        -> with targets, in any mode, {term: float32 scalar}, weighted: their sum is the loss.
           Without, per image {"boxes": float32 [k, 4] xyxy px within the picture, "scores":
           float32 [k], "labels": int64 [k] from 0}, best first, k <= 100.

This file imports neither torch nor a network, so that `--help` is fast.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from downstream.dense.packages import BY_HEAD, require_packages
from ssld.common.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from downstream.backbone.backbone import Backbone
    from downstream.backbone.config import BackboneConfig

HERE = "downstream.detection.heads"


@dataclass(frozen=True)
class Detector:
    """Where a detector is, and what it is built on."""

    module: str
    network: str
    """Class in the module: (backbone, num_classes, *, ...)."""
    strides: tuple[int, ...]
    """Of the backbone's maps."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the class that make this detector."""


DETECTORS = {
    "faster_rcnn": Detector("torchvision_heads", "FasterRCNN", (4, 8, 16, 32)),
    "retinanet": Detector("torchvision_heads", "RetinaNet", (8, 16, 32)),
    "fcos": Detector("torchvision_heads", "FCOS", (8, 16, 32)),
    "ttfnet": Detector("ttfnet", "TTFNet", (4, 8, 16, 32)),
    "yolov3": Detector("yolov3", "YOLOv3", (8, 16, 32)),
    "yolov3_dcn": Detector("yolov3", "YOLOv3", (8, 16, 32), {"dcn": True}),
    "detr": Detector("detr", "DETR", (32,)),
}
STRIDES = {name: detector.strides for name, detector in DETECTORS.items()}
"""Of the maps that each wants of its backbone."""


def build(
    name: str, config: BackboneConfig, num_classes: int, args: Mapping[str, Any] | None = None
) -> nn.Module:
    """A detector on a backbone.

    Args:
        name: one of DETECTORS.
        config: what the backbone is.
        num_classes: of the boxes, without background.
        args: further arguments of the detector's class, for example {"anchor_sizes": [...]}.

    Raises:
        InputError: an unknown name or argument, a value that the detector refuses, or a backbone
            that cannot be had or lacks the maps.
    """
    options(name, args)
    from downstream.backbone.backbone import open_backbone

    backbone = open_backbone(config, strides=_find(name).strides)
    return on_backbone(name, backbone, num_classes, args)


def on_backbone(
    name: str, backbone: Backbone, num_classes: int, args: Mapping[str, Any] | None = None
) -> nn.Module:
    """The detector on a backbone that is there, opened with STRIDES[name].

    Raises:
        InputError: as of `build`.
    """
    given = options(name, args)
    if num_classes < 1:
        raise InputError(f"{name} for {num_classes} classes: give data with at least one")
    return _load(name)(backbone, num_classes, **given, **_find(name).fixed)


def options(name: str, args: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`args`, if the detector knows them all; what it does with them is in its class.

    Raises:
        InputError: an unknown detector or argument; what there is is said.
    """
    fixed, given = _find(name).fixed, dict(args or {})
    known = [
        key
        for key, parameter in inspect.signature(_load(name)).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and key not in fixed
    ]
    for key in given:
        if key not in known:
            raise InputError(
                f"{name} has no argument {key!r}, it has {', '.join(known)}{_near(key, known)}"
            )
    return given


def _load(name: str) -> Any:
    detector = _find(name)
    require_packages(name, *BY_HEAD.get(name, ()))
    return getattr(importlib.import_module(f"{HERE}.{detector.module}"), detector.network)


def _find(name: str) -> Detector:
    if name not in DETECTORS:
        raise InputError(
            f"unknown detector {name!r}, there are {', '.join(DETECTORS)}{_near(name, DETECTORS)}"
        )
    return DETECTORS[name]


def _near(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
