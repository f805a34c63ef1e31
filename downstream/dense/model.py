"""A network on a backbone together with how it wants to see images, and its backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import nn

from downstream.backbone.backbone import Backbone, open_backbone
from downstream.backbone.config import BackboneConfig
from downstream.dense.networks import NetworkEntry
from ssld.common.errors import InputError
from ssld.models.classifier import ImageModel


class DenseModel(ImageModel):
    """A detector or segmenter; its backbone says the normalisation.

    Args:
        model: has a `backbone`.
        label_names: of the classes, by number.
    """

    preset: str
    """Of the backbone's learning rates, a key of `downstream.backbone.config.PRESETS`."""

    def __init__(self, model: nn.Module, label_names: Sequence[str]) -> None:
        backbone = cast(Backbone, model.backbone)
        super().__init__(model, mean=backbone.mean, std=backbone.std, label_names=label_names)

    @property
    def backbone(self) -> Backbone:
        return cast(Backbone, self.model.backbone)

    def lr_scales(self) -> dict[str, float]:
        scales = self.backbone.lr_scales(self.preset)
        return {f"model.backbone.{name}": scale for name, scale in scales.items()}


def backbone_for(entry: NetworkEntry, config: BackboneConfig) -> Backbone:
    """The backbone with the maps that a network wants.

    Raises:
        InputError: it cannot be had, or lacks the maps.
    """
    try:
        return open_backbone(config, strides=entry.strides, output_stride=entry.output_stride)
    except InputError:
        if not entry.undilated:
            raise
        return open_backbone(config)
