"""A segmenter together with how it wants to see images: uint8 in, logits out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from downstream.dense.trained import load
from downstream.segmentation.heads.segmenter import Segmenter
from downstream.segmentation.inference import predict
from ssld.models.classifier import ImageModel


class SegmentationModel(ImageModel):
    """Images in, one logit per class and pixel out.

    Args:
        model: one of `downstream.segmentation.networks`; its backbone says the normalisation.
    """

    def __init__(self, model: Segmenter, label_names: Sequence[str]) -> None:
        backbone: Any = model.backbone
        super().__init__(model, mean=backbone.mean, std=backbone.std, label_names=label_names)
        self.aux_weight = model.aux_weight

    def lr_scales(self) -> dict[str, float]:
        scales = self.model.backbone.lr_scales("segmentation")  # type: ignore[operator, union-attr]
        return {f"model.backbone.{name}": scale for name, scale in scales.items()}

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> Any:
        """
        Args:
            images: uint8 [b, h, w, 3], all picture.
            sizes: not used.

        Returns:
            float32 [b, classes, h, w]; in training mode (main, auxiliary) where there are two.
        """
        return self.model(self.normalise(images.permute(0, 3, 1, 2).float()))

    @torch.no_grad()
    def segment(self, image: Tensor, **test: Any) -> Tensor:
        """Class numbers uint8 [h, w] of an image, uint8 [h, w, 3].

        Args:
            test: crop, stride, scales and flip, of `downstream.segmentation.inference.predict`.
        """
        pixels = self.normalise(image.permute(2, 0, 1)[None].float())[0]
        return predict(self.model, pixels, **test).argmax(0).to(torch.uint8)


def open_segmenter(folder: Path, content: dict[str, Any]) -> SegmentationModel:
    """The segmenter that an exported folder holds, in eval mode.

    Args:
        folder, content: as of `downstream.dense.trained.read_description`.

    Raises:
        InputError: weights that cannot be read or do not fit.
    """
    from downstream.segmentation.networks import on_backbone

    model = load(folder, content, lambda x, n: on_backbone(content["head"]["name"], x, n))
    return SegmentationModel(model, content["class_names"]).eval()  # type: ignore[arg-type]
