"""A detector together with how it wants to see images: uint8 in, boxes out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from downstream.dense.trained import load
from ssld.models.classifier import ImageModel


class DetectionModel(ImageModel):
    """Images in; losses out where targets are given, else boxes.

    Args:
        model: one of `downstream.detection.networks`; its backbone says the normalisation.
    """

    def __init__(self, model: nn.Module, label_names: Sequence[str]) -> None:
        backbone: Any = model.backbone
        super().__init__(model, mean=backbone.mean, std=backbone.std, label_names=label_names)

    @property
    def stride(self) -> int:
        """Heights and widths are padded to a multiple of it."""
        return int(self.model.stride)  # type: ignore[arg-type]

    @property
    def queries(self) -> int | None:
        """The most boxes that it can tell of an image, None without such a limit."""
        return getattr(self.model, "num_queries", None)  # type: ignore[return-value]

    def lr_scales(self) -> dict[str, float]:
        scales = self.model.backbone.lr_scales("detection")  # type: ignore[operator, union-attr]
        return {f"model.backbone.{name}": scale for name, scale in scales.items()}

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


def open_detector(folder: Path, content: dict[str, Any]) -> DetectionModel:
    """The detector that an exported folder holds, in eval mode.

    Args:
        folder, content: as of `downstream.dense.trained.read_description`.

    Raises:
        InputError: weights that cannot be read or do not fit.
    """
    from downstream.detection.networks import on_backbone

    head = content["head"]
    model = load(
        folder, content, lambda x, classes: on_backbone(head["name"], x, classes, head["args"])
    )
    return DetectionModel(model, content["class_names"]).eval()
