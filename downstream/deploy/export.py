"""`ssld export RUN`: a trained network as ONNX, checked against PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from downstream.dense.model import read_description, run_folder
from downstream.deploy import onnx_detector
from downstream.deploy.config import ExportConfig
from downstream.deploy.onnx_detector import pretrained_cfg
from downstream.detection.model import open_detector
from downstream.detection.networks import detector
from downstream.segmentation.model import open_segmenter
from ssld.common.errors import InputError
from ssld.models.opening import open_network
from zoo.export import classifier

Size = tuple[int, int]


def export(config: ExportConfig) -> None:
    """Write the file, or nothing.

    Raises:
        InputError: no such network, packages that are missing, a file that differs from PyTorch.
    """
    if (run_folder(config.run) / "student").is_dir():
        if config.size is not None:
            raise InputError("size: a classifier is exported for the size of its run; leave it out")
        network = open_network("run", arch=None, checkpoint=config.run)
        exported = classifier.export(network.model, "onnx", config.file)
        print(f"{config.file}: ONNX ({exported.method})\n{_difference(exported)}")
        return
    folder, content = read_description(config.run)
    write = {"detection": _detector, "segmentation": _segmenter}[content["task"]]
    method, (height, width), comparison = write(folder, content, config)
    print(
        f"{config.file}: ONNX ({method}) for images of {height} x {width} px (height, width), "
        f"normalised with the file's mean and std\n{comparison}"
    )


def _detector(folder: Path, content: dict[str, Any], config: ExportConfig) -> tuple[str, Size, str]:
    model = open_detector(folder, content)
    side, stride = content["view"]["test_size"], model.stride
    size = config.size or (-(-side // stride) * stride,) * 2
    names = content["class_names"]
    points = model.keypoints and model.keypoints.names
    exported = onnx_detector.export_onnx(
        model.model, config.file, size, names, keypoint_names=points
    )
    parts = _of_parts(exported, detector(content["head"]["name"]).finds)
    return (
        exported.method,
        size,
        f"{exported.paired} detections in {exported.images} images, the same as PyTorch's: boxes "
        f"off by at most {exported.max_box_px:.2g} px, scores by {exported.max_score:.2g}, found "
        f"by one side alone {exported.missed:.2%}{parts}",
    )


def _of_parts(exported: onnx_detector.ExportedDetector, finds: str) -> str:
    if not exported.parts:
        return ""
    unit = " px" if finds == "keypoints" else " in the probability of a cell"
    return (
        f"; their {exported.parts} {finds} off by at most {exported.max_part:.2g}{unit}, elsewhere "
        f"{exported.parts_off:.2%}"
    )


def _segmenter(
    folder: Path, content: dict[str, Any], config: ExportConfig
) -> tuple[str, Size, str]:
    model, names = open_segmenter(folder, content), content["class_names"]
    height, width = config.size or content["view"]["trained_on"]
    exported = export_segmenter(model.model, config.file, (height, width), names)
    return exported.method, (height, width), _difference(exported)


def _difference(exported: classifier.Exported) -> str:
    return (
        f"logits of {exported.inputs} images: off by at most {exported.max_abs:.2g}, which is "
        f"{exported.relative:.2g} of their deviation"
    )


def export_segmenter(
    network: nn.Module,
    path: Path,
    size: tuple[int, int],
    class_names: Sequence[str] | None = None,
) -> classifier.Exported:
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
    return classifier.export(_OfOneSize(network, size, class_names), "onnx", path)


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
