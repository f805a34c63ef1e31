"""`ssld export RUN`: a trained network as ONNX, checked against PyTorch."""

from __future__ import annotations

from pathlib import Path

from downstream.deploy.config import ExportConfig
from ssld.common.errors import InputError


def export(config: ExportConfig) -> None:
    """Write the file, or nothing.

    Raises:
        InputError: no such network, packages that are missing, a file that differs from PyTorch.
    """
    from downstream.dense.trained import read_description

    out = config.file
    if (Path(config.run) / "student").is_dir():
        print(_classifier(config, out))
        return
    folder, content = read_description(config.run)
    write = {"detection": _detector, "segmentation": _segmenter}[content["task"]]
    print(write(folder, content, config.size, out))


def _detector(folder: Path, content: dict, size: tuple[int, int] | None, out: Path) -> str:
    from downstream.deploy.onnx_detector import export_onnx
    from downstream.detection.model import open_detector

    model = open_detector(folder, content)
    side, stride = content["view"]["test_size"], model.stride
    height, width = size or (-(-side // stride) * stride,) * 2
    found = export_onnx(model.model, out, (height, width), content["class_names"])
    return (
        f"{out}: ONNX ({found.method}) for images of {height} x {width} px (height, width), "
        f"normalised with the file's mean and std\n"
        f"{found.paired} detections in {found.images} images, the same as PyTorch's: boxes off by "
        f"at most {found.max_box_px:.2g} px, scores by {found.max_score:.2g}, found by one side "
        f"alone {found.missed:.2%}"
    )


def _segmenter(folder: Path, content: dict, size: tuple[int, int] | None, out: Path) -> str:
    from downstream.deploy.onnx_segmenter import export_onnx
    from downstream.segmentation.model import open_segmenter

    height, width = size or content["view"]["trained_on"]
    model = open_segmenter(folder, content)
    found = export_onnx(model.model, out, (height, width), content["class_names"])  # type: ignore[arg-type]
    return (
        f"{out}: ONNX ({found.method}) for images of {height} x {width} px (height, width), "
        "normalised with the file's mean and std\n"
        f"logits of {found.inputs} images: off by at most {found.max_abs:.2g}, which is "
        f"{found.relative:.2g} of their deviation"
    )


def _classifier(config: ExportConfig, out: Path) -> str:
    from ssld.models.classifier import open_network
    from zoo.errors import InputError as ZooError
    from zoo.export.onnx_classifier import export as write

    if config.size is not None:
        raise InputError("size: a classifier is exported for the size of its run; leave it out")
    network = open_network("run", arch=None, checkpoint=config.run)
    try:
        found = write(network.model, "onnx", out)
    except ZooError as error:
        raise InputError(str(error)) from error
    return (
        f"{out}: ONNX ({found.method})\nlogits of {found.inputs} images: off by at most "
        f"{found.max_abs:.2g}, which is {found.relative:.2g} of their deviation"
    )
