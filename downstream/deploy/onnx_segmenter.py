"""A segmenter as an ONNX file, checked against itself as every export of this project is
(`zoo/export/onnx_classifier.py`): at several inputs and batch sizes, before the file gets its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from downstream.segmentation.heads.segmenter import Segmenter
from ssld.common.errors import InputError
from zoo.errors import InputError as ZooError
from zoo.export.onnx_classifier import Exported, export


def export_onnx(
    network: Segmenter,
    path: Path,
    size: tuple[int, int],
    class_names: Sequence[str] | None = None,
) -> Exported:
    """Write `network` for images of one size; the network stays as it is.

    In: `images`, float32 [b, 3, *size], normalised with the file's `mean` and `std`, b free.
    Out: `logits`, float32 [b, classes, *size]. What a user must know is in the file's metadata, as
    `zoo.export.onnx_classifier.facts` names it.

    Args:
        size: height and width in px, any.
        class_names: by class number.

    Returns:
        What was written, and how far it is from PyTorch.

    Raises:
        InputError: the network cannot be expressed, packages are missing, `path` cannot be written
            or the file differs from PyTorch by more than `zoo.export.onnx_classifier.TOLERANCE`.
    """
    try:
        return export(_OfOneSize(network, size, class_names), "onnx", path)
    except ZooError as error:
        raise InputError(str(error)) from error


class _OfOneSize(nn.Module):
    """Says of itself what timm's classifiers do, and refuses other sizes: the exporter tries them,
    and what it has written is of one size where the network refuses."""

    def __init__(
        self, network: Segmenter, size: tuple[int, int], class_names: Sequence[str] | None
    ) -> None:
        super().__init__()
        self.network = network
        self.size = size
        self.num_classes = network.num_classes
        self.pretrained_cfg = {
            "architecture": f"{type(network).__name__} {network.backbone.architecture}",
            "input_size": (3, *size),
            "mean": network.backbone.mean,
            "std": network.backbone.std,
            "label_names": class_names,
        }

    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape[2:]) != self.size:
            raise ValueError(f"images of {tuple(images.shape[2:])} instead of {self.size} px")
        return self.network(images)
