"""Small detectors, two images in two views, and the losses on them."""

from __future__ import annotations

from typing import Any

import torch
from overfit import PlainBackbone, pictures
from torch import Tensor, nn

from downstream.detection.model import on_backbone
from downstream.sed.config import ConsistencyConfig
from downstream.sed.consistency import unlabeled_losses

SETTINGS = ConsistencyConfig(scale_weight=1.0, reweight=True, bins=10, proposals=40)
ARGS = {
    "retinanet": {"channels": 16},
    "retinanet_bn": {"channels": 16},
    "faster_rcnn": {"channels": 16, "head_channels": 32},
    "detr": {"num_queries": 6, "width": 32, "layers": 2, "heads": 2, "ffn_width": 32},
}
STRIDES = {
    "retinanet": (8, 16, 32),
    "retinanet_bn": (8, 16, 32),
    "faster_rcnn": (4, 8, 16, 32),
    "detr": (32,),
}
SIZES = torch.tensor([[64, 64], [50, 37]])
TERMS = ("scale_classes", "scale_boxes", "distill_classes", "distill_boxes")


def make(name: str, **args: Any) -> nn.Module:
    """A small one that has opinions: heads begin with larger weights than usual."""
    torch.manual_seed(0)
    network: Any = on_backbone(name, PlainBackbone(STRIDES[name]), 3, {**ARGS[name], **args})
    heads = ("head.", "rpn.", "box_predictor", "class_labels_classifier")
    for key, weight in network.named_parameters():
        if key.startswith(heads) or ".box_predictor" in key:
            weight.data.copy_(torch.randn_like(weight) / weight[:1].numel() ** 0.5)
    return network.eval()


def views(seed: int = 0, size: int = 64) -> Tensor:
    """Two images, the second one with padding."""
    images, _ = pictures(size, count=2, seed=seed)
    images[1, :, 50 * size // 64 :] = 0
    images[1, :, :, 37 * size // 64 :] = 0
    return images


def losses(
    student: Any,
    settings: ConsistencyConfig = SETTINGS,
    teacher: Any = None,
    weak: Tensor | None = None,
) -> dict[str, Tensor]:
    """At half the size; without a teacher the student is its own."""
    weak = views(1) if weak is None else weak
    return unlabeled_losses(
        student, teacher or student, weak, views(), SIZES, s=1, settings=settings
    )
