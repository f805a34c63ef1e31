"""From the many boxes that a network gives to the few that are found in a picture."""

from __future__ import annotations

import torch
from torch import Tensor

from downstream.backbone.backbone import Backbone
from ssld.common.errors import InputError

Detections = dict[str, Tensor]
"""Of one image: "boxes" float32 [k, 4] xyxy px, "scores" float32 [k] and "labels" int64 [k] from 0,
best first."""

MAX_DETECTIONS = 100
"""Per image: what COCO's evaluation looks at (cocoeval.py, `maxDets`), and what TTFNet and YOLOv3
of PaddleDetection keep (`max_per_img`, `keep_top_k`)."""


def require_strides(backbone: Backbone, wanted: tuple[int, ...]) -> None:
    """Raise InputError unless the backbone's maps have these strides."""
    if tuple(backbone.strides) != wanted:
        raise InputError(
            f"the detector needs maps of strides {wanted} but the backbone has "
            f"{tuple(backbone.strides)}; open it with those"
        )


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes xyxy px [b, n, 4] cut to pictures of (h, w) `sizes` [b, 2]."""
    limits = sizes.flip(1).repeat(1, 2).unsqueeze(1).to(boxes)  # [b, 1, w h w h]
    return torch.minimum(boxes.clamp(min=0), limits)


def detections(
    boxes: Tensor, scores: Tensor, labels: Tensor, score_threshold: float
) -> list[Detections]:
    """Per image those with a higher score than `score_threshold` and an area.

    Args:
        boxes: [b, k, 4] xyxy px.
        scores, labels: [b, k].
    """
    kept = []
    for xyxy, score, label in zip(boxes, scores, labels, strict=True):
        keep = (score > score_threshold) & (xyxy[:, 2:] > xyxy[:, :2]).all(1)
        kept.append({"boxes": xyxy[keep], "scores": score[keep], "labels": label[keep]})
    return kept
