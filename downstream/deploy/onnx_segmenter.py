"""A segmenter as an ONNX file, checked as a classifier is (`zoo/export/classifier.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from downstream.deploy.described import pretrained_cfg
from zoo.export.classifier import Exported, export


def export_onnx(
    network: nn.Module,
    path: Path,
    size: tuple[int, int],
    class_names: Sequence[str] | None = None,
) -> Exported:
    """Write `network` for images of one size; the network stays as it is.

    In: `images`, float32 [b, 3, *size], normalised with the file's `mean` and `std`, b free.
    Out: `logits`, float32 [b, classes, *size]. What a user must know is in the file's metadata, as
    `zoo.export.checked.facts` names it.

    Args:
        network: a `downstream.segmentation.heads.segmenter.Segmenter`.
        size: height and width in px, any.
        class_names: by class number; travel in the file as `label_names`.

    Raises:
        InputError: see `zoo.export.classifier.export`.
    """
    return export(_OfOneSize(network, size, class_names), "onnx", path)


class _OfOneSize(nn.Module):
    """Refuses other sizes: the export tries them, and writes for one size where they fail."""

    def __init__(
        self, network: nn.Module, size: tuple[int, int], class_names: Sequence[str] | None
    ) -> None:
        super().__init__()
        self.network = network
        self.size = size
        self.num_classes = network.num_classes
        self.pretrained_cfg = pretrained_cfg(network, size, class_names)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        if tuple(images.shape[2:]) != self.size:
            raise ValueError(f"images of {tuple(images.shape[2:])} instead of {self.size} px")
        return self.network(images)
