"""A segmenter together with how it wants to see images: uint8 in, logits out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from downstream.backbone.backbone import Backbone
from downstream.backbone.config import BackboneConfig
from downstream.dense.config import MAX_SCALE, MAX_SCALES
from downstream.dense.model import DenseModel, backbone_for, load, reading_view, require_sides
from downstream.segmentation.config import TestConfig
from downstream.segmentation.heads.segmenter import Segmenter
from downstream.segmentation.inference import predict, predict_both
from downstream.segmentation.networks import segmenter


class SegmentationModel(DenseModel):
    """Images in, one logit per class and pixel out."""

    preset = "segmentation"

    def __init__(self, model: Segmenter, label_names: Sequence[str]) -> None:
        super().__init__(model, label_names)
        self.aux_weight = model.aux_weight

    def forward(
        self, images: Tensor, sizes: Tensor | None = None, labeled: Tensor | None = None
    ) -> Any:
        """
        Args:
            images: uint8 [b, h, w, 3], all picture.
            sizes: not used.
            labeled: further images, uint8 [c, h, w, 3]; then what is below comes in a pair with
                `pooled` of them.

        Returns:
            float32 [b, classes, h, w]; in training mode (main, auxiliary) where there are two.
        """
        pooled = None if labeled is None else self.pooled(labeled)
        logits = self.model(self.normalise(images.permute(0, 3, 1, 2).float()))
        return logits if pooled is None else (logits, pooled)

    @torch.no_grad()
    def probabilities(self, image: Tensor, **test: Any) -> Tensor:
        """Of each class and pixel, float32 [classes, h, w], of an image, uint8 [h, w, 3].

        Args:
            test: crop, stride, scales and flip, of `downstream.segmentation.inference.predict`.
        """
        pixels = self.normalise(image.permute(2, 0, 1)[None].float())[0]
        return predict(self.model, pixels, **test)

    def segment(self, image: Tensor, **test: Any) -> Tensor:
        """Class numbers uint8 [h, w]; see `probabilities`."""
        return self.segment_both(image, **test)[0]

    @torch.no_grad()
    def segment_both(self, image: Tensor, **test: Any) -> tuple[Tensor, Tensor]:
        """Class numbers uint8 [h, w], of all views and of one alone; see `predict_both` of
        `downstream.segmentation.inference`."""
        pixels = self.normalise(image.permute(2, 0, 1)[None].float())[0]
        views = predict_both(self.model, pixels, **{**vars(TestConfig()), **test})
        whole, one = (x.argmax(0).to(torch.uint8) for x in views)
        return whole, one


def build(name: str, config: BackboneConfig, num_classes: int) -> Segmenter:
    """A segmenter on a backbone.

    Args:
        name: one of SEGMENTERS.
        config: what the backbone is.
        num_classes: of the masks.

    Raises:
        InputError: an unknown name, or a backbone that cannot be had or lacks the maps.
    """
    return on_backbone(name, backbone_for(segmenter(name), config), num_classes)


def on_backbone(name: str, backbone: Backbone, num_classes: int) -> Segmenter:
    """The segmenter on a backbone that is there, with the maps that it wants.

    Raises:
        InputError: an unknown name, or a package is missing.
    """
    entry = segmenter(name)
    return entry.load(name)(backbone, num_classes, **entry.fixed)


def open_segmenter(folder: Path, content: dict[str, Any]) -> SegmentationModel:
    """The segmenter that an exported folder holds, in eval mode.

    Args:
        folder, content: as of `downstream.dense.model.read_description`.

    Raises:
        InputError: a damaged description, weights that cannot be read or do not fit.
    """
    with reading_view(folder):
        _check_view(content)
    model = load(folder, content, lambda x, n: on_backbone(content["head"]["name"], x, n))
    return SegmentationModel(model, content["class_names"]).eval()


def test_of(content: dict[str, Any]) -> TestConfig:
    """How an exported segmenter sees images."""
    other = ("palette", "trained_on", "ids")
    return TestConfig(**{name: x for name, x in content["view"].items() if name not in other})


def _check_view(content: dict[str, Any]) -> None:
    described, test = content["view"], test_of(content)
    palette, trained_on = described["palette"], described["trained_on"]
    require_sides([*trained_on, *(test.crop or ()), *(test.stride or ())])
    pairs = all(len(sides) == 2 for sides in (trained_on, test.crop, test.stride) if sides)
    many = len(test.scales) > MAX_SCALES or max(test.scales) > MAX_SCALE
    if not pairs or many or type(test.flip) is not bool:
        raise ValueError(f"view is {described!r}")
    if np.array(palette, np.uint8).shape[1:] != (3,):
        raise ValueError("palette has not three numbers of each class")
    ids = described.get("ids", [])  # older exports have none
    if any(type(x) is not int for x in ids) or len(ids) not in (0, len(palette)):
        raise ValueError(f"ids are {ids!r}")
