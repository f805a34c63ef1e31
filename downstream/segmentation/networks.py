"""Segmentation networks by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from downstream.dense.packages import BY_HEAD, require_packages
from ssld.common.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from downstream.backbone.backbone import Backbone
    from downstream.backbone.config import BackboneConfig
    from downstream.segmentation.heads.segmenter import Segmenter

SEGMENTERS = ("fcn", "ocrnet", "deeplabv3plus")


def build(name: str, config: BackboneConfig, num_classes: int) -> Segmenter:
    """A segmentation network on a backbone.

    Args:
        name: one of SEGMENTERS.
        config: what the backbone is.
        num_classes: of the masks.

    Raises:
        InputError: an unknown name, or a backbone that cannot be had or lacks the maps.
    """
    return on_backbone(name, backbone_for(name, config), num_classes)


def backbone_for(name: str, config: BackboneConfig) -> Backbone:
    """The backbone with the maps that a network wants.

    `deeplabv3plus` wants stride 4 and, by dilation, 8. `fcn` and `ocrnet` want one map of stride 8
    by dilation; what has no dilation (HRNet, which keeps its resolution anyway) gives its maps of
    strides 4, 8, 16 and 32.

    Raises:
        InputError: an unknown name, or a backbone that cannot be had or lacks the maps.
    """
    from downstream.backbone.backbone import open_backbone

    _check(name)
    if name == "deeplabv3plus":
        return open_backbone(config, strides=(4, 32), output_stride=8)
    try:
        return open_backbone(config, strides=(32,), output_stride=8)
    except InputError:
        return open_backbone(config)


def on_backbone(name: str, backbone: Backbone, num_classes: int) -> Segmenter:
    """The network on a backbone that is there, as `backbone_for` opens it.

    Raises:
        InputError: an unknown name.
    """
    _check(name)
    if name == "fcn":
        from downstream.segmentation.heads.fcn import FCN

        return FCN(backbone, num_classes)
    if name == "ocrnet":
        from downstream.segmentation.heads.ocrnet import OCRNet

        return OCRNet(backbone, num_classes)
    require_packages(name, *BY_HEAD.get(name, ()))
    from downstream.segmentation.heads.deeplab import DeepLabV3Plus

    return DeepLabV3Plus(backbone, num_classes)


def _check(name: str) -> None:
    if name not in SEGMENTERS:
        hint = did_you_mean(name, SEGMENTERS)
        raise InputError(f"unknown network {name!r}, there are {', '.join(SEGMENTERS)}{hint}")
