"""A detector together with how it wants to see images: uint8 in, boxes out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from downstream.backbone.backbone import Backbone
from downstream.backbone.config import BackboneConfig
from downstream.dense.model import DenseModel, backbone_for, load, reading_view, require_sides
from downstream.detection.config import BoxAugmentConfig
from downstream.detection.networks import detector, options
from ssld.common.errors import InputError


class DetectionModel(DenseModel):
    """Images in; losses out where targets are given, else boxes.

    Args:
        model: one of `downstream.detection.networks`.
    """

    preset = "detection"

    @property
    def stride(self) -> int:
        """Heights and widths are padded to a multiple of it."""
        return cast(int, self.model.stride)

    @property
    def queries(self) -> int | None:
        """The most boxes that it can tell of an image, None without such a limit."""
        return cast(int | None, getattr(self.model, "num_queries", None))

    def forward(
        self, images: Tensor, sizes: Tensor, targets: list[dict[str, Tensor]] | None = None
    ) -> Any:
        """
        Args:
            images: uint8 [b, h, w, 3].
            sizes: int64 [b, 2], the (h, w) of each that is picture; what is beyond is padding.
            targets: per image "boxes" float32 [n, 4] xyxy in px, "labels" int64 [n], and
                "weights" float32 [n] where images are mixed.

        Returns:
            {term: float32 scalar}, or per image {"boxes": float32 [k, 4] xyxy in px within the
            picture, "scores": float32 [k], "labels": int64 [k]}, best first.
        """
        batch, height, width, _ = images.shape
        pad = (0, 0, 0, -width % self.stride, 0, -height % self.stride)
        images = nn.functional.pad(images, pad).permute(0, 3, 1, 2)
        rows = torch.arange(images.shape[2], device=images.device)
        columns = torch.arange(images.shape[3], device=images.device)
        inside = (rows[:, None] < sizes[:, 0].view(batch, 1, 1)) & (
            columns < sizes[:, 1].view(batch, 1, 1)
        )  # [b, h, w]
        # Padded after normalisation: 0 is the mean colour, as in torchvision's and detectron2's.
        return self.model(self.normalise(images.float()) * inside[:, None], sizes, targets)


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
    options(name, args)  # before weights are fetched
    return on_backbone(name, backbone_for(detector(name), config), num_classes, args)


def on_backbone(
    name: str, backbone: Backbone, num_classes: int, args: Mapping[str, Any] | None = None
) -> nn.Module:
    """The detector on a backbone that is there, with the maps that it wants.

    Raises:
        InputError: as of `build`.
    """
    given, entry = options(name, args), detector(name)
    if num_classes < 1:
        raise InputError(f"{name} for {num_classes} classes: give data with at least one")
    return entry.load(name)(backbone, num_classes, **given, **entry.fixed)


def open_detector(folder: Path, content: dict[str, Any]) -> DetectionModel:
    """The detector that an exported folder holds, in eval mode.

    Args:
        folder, content: as of `downstream.dense.model.read_description`.

    Raises:
        InputError: a damaged description, weights that cannot be read or do not fit.
    """
    with reading_view(folder):
        view = BoxAugmentConfig(**content["view"])
        require_sides([view.test_size, *view.sizes, view.longest or 1])
    head = content["head"]
    model = load(folder, content, lambda x, n: on_backbone(head["name"], x, n, head["args"]))
    return DetectionModel(model, content["class_names"]).eval()
