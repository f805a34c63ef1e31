"""The detectors by name. Each is a network with

    stride            images are padded (right and bottom, with 0) to a multiple of it
    backbone          a `downstream.backbone.backbone.Backbone`
    score_threshold   detections need a higher score
    forward(images, sizes, targets=None)
        images   float32 [b, 3, H, W], normalised as the backbone wants
        sizes    int64 [b, 2], the (h, w) of each that is picture, not padding
        targets  per image {"boxes": float32 [n, 4] xyxy px, "labels": int64 [n] from 0}, n >= 0;
                 of keypoints "keypoints" float32 [n, K, 3]: x, y px, visibility; of masks "masks"
                 uint8 [n, h, w], 0 or 1
        -> with targets, in any mode, {term: float32 [b]}, weighted: the sum of their means over the
           images is the loss.
           Without, per image {"boxes": float32 [k, 4] xyxy px within the picture, "scores":
           float32 [k], "labels": int64 [k] from 0}, best first, k <= 100; of keypoints "keypoints"
           float32 [k, K, 3]: x, y px, score from 0 to 1; of masks "masks" float32 [k, m, m]:
           probabilities in the frame of each box, whose cell (row r, column c) has its centre at
           x1 + (c + .5) / m width, y1 + (r + .5) / m height.

One that finds keypoints or masks has, for the mean over several views of an image,

    parts(images, sizes, found) -> per image float32 logits in the frame of each box of `found` (as
        forward gives it): of keypoints [k, K, m, m], of masks [k, m, m] of the box's class
    find(images, sizes) -> what forward finds, and `parts` of it, in one pass through the backbone
    finish(found, parts) -> `found` of one image with "keypoints" or "masks" of such logits

One that can be compared with itself before it decides, for self-training on soft targets
(`downstream/sed`), has by its kind

    raw(images, sizes) -> `Raw` (`heads/torchvision_heads.py`): logits and offsets of all anchors;
        of a network of two stages what the first says
    propose(raw, sizes) -> of a network of two stages, per image float32 [n, 4] xyxy px within the
        picture: what it looks at again, best first, n <= 1000; without gradient. (h, w) in `sizes`
        may be broken numbers
    refine(maps, proposals) -> what it says then, on the maps of `raw`, of the boxes of all images:
        logits float32 [n, classes + 1], the first one the background's, and offsets float32
        [n, classes, 4]
    queries(images, sizes) -> of DETR, in place of these: logits float32 [b, queries, classes + 1],
        the last one "no object", and boxes float32 [b, queries, 4]: cx, cy, w, h of the picture = 1

A new detector is such a class and a line in DETECTORS; the class takes (backbone, number of
classes, *, its own options), one of keypoints their number after that of the classes. This file
imports neither torch nor a network, so that `--help` is fast.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from downstream.dense.networks import NetworkEntry, find
from ssld.common.errors import InputError, did_you_mean

HEADS = "downstream.detection.heads"
TO_32 = (8, 16, 32)
TO_128 = (8, 16, 32, 64, 128)
PREFIXES = {"boxes": "", "keypoints": "keypoint_", "masks": "mask_"}
"""Of the metrics of what is found: `keypoint_ap`."""

DETECTORS = {
    "faster_rcnn": NetworkEntry(f"{HEADS}.faster_rcnn:FasterRCNN"),
    "keypoint_rcnn": NetworkEntry(f"{HEADS}.part_rcnn:KeypointRCNN", finds="keypoints"),
    "mask_rcnn": NetworkEntry(f"{HEADS}.part_rcnn:MaskRCNN", finds="masks"),
    "retinanet": NetworkEntry(f"{HEADS}.torchvision_heads:RetinaNet", TO_32),
    "retinanet_bn": NetworkEntry(f"{HEADS}.normed_retinanet:NormedRetinaNet", TO_32),
    "retinanet_nas_fpn": NetworkEntry(f"{HEADS}.normed_retinanet:NASFPNRetinaNet", TO_32),
    "retinanet_spinenet": NetworkEntry(f"{HEADS}.normed_retinanet:SpineNetRetinaNet", TO_128),
    "fcos": NetworkEntry(f"{HEADS}.torchvision_heads:FCOS", TO_32),
    "ttfnet": NetworkEntry(f"{HEADS}.ttfnet:TTFNet"),
    "yolov3": NetworkEntry(f"{HEADS}.yolov3:YOLOv3", TO_32),
    "yolov3_dcn": NetworkEntry(f"{HEADS}.yolov3:YOLOv3", TO_32, fixed={"dcn": True}),
    "detr": NetworkEntry(f"{HEADS}.detr:DETR", (32,), packages=("transformers",)),
}


def detector(name: str) -> NetworkEntry:
    """Raises InputError where there is none of that name."""
    return find(DETECTORS, "detector", name)


def options(name: str, args: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`args`, if the detector knows them all; what it does with them is in its class.

    Raises:
        InputError: an unknown detector or argument; what there is is said.
    """
    entry, given = detector(name), dict(args or {})
    known = [key for key in _arguments(entry.load(name)) if key not in entry.fixed]
    for key in given:
        if key not in known:
            hint = did_you_mean(key, known)
            raise InputError(f"{name} has no argument {key!r}, it has {', '.join(known)}{hint}")
    return given


def _arguments(network: type) -> list[str]:
    """What can only be given by name to a class, and to its base class where it takes `**`."""
    parameters = inspect.signature(network).parameters.values()
    names = [x.name for x in parameters if x.kind is x.KEYWORD_ONLY]
    if any(x.kind is x.VAR_KEYWORD for x in parameters):
        names += [x for x in _arguments(network.__bases__[0]) if x not in names]
    return names
