"""`ssld export RUN`: a trained network as ONNX, checked against PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from downstream.packages import require_packages
from ssld import cli
from ssld.errors import InputError
from ssld.loop_config import require


@dataclass(frozen=True)
class ExportConfig:
    """`ssld export RUN`: write ONNX, and compare what onnxruntime makes of it with PyTorch."""

    run: str = ""
    """Run folder of a detector, segmenter or classifier; the first word is taken for it."""
    out: str | None = None
    """File to write; by default `model.onnx` in the run folder."""
    size: tuple[int, int] | None = None
    """Height and width in px of the images of a segmenter or a detector; by default a segmenter's
    `augment.crop`, or a detector's `augment.test_size`, square."""

    def __post_init__(self) -> None:
        require(bool(self.run), "no run is given: ssld export RUN")
        require(
            self.size is None or min(self.size) > 0,
            f"size is {self.size}: give height and width in px, both above 0",
        )


def export(config: ExportConfig) -> None:
    """Write the file, or nothing.

    Raises:
        InputError: no such network, packages that are missing, a file that differs from PyTorch.
    """
    from downstream.trained import read_description
    from ssld.replaceable import check_file

    require_packages("ssld export", "onnx", "onnxruntime")
    run = Path(config.run)
    out = Path(config.out) if config.out else run / "model.onnx"
    check_file("out", out, "onnx")
    if (run / "student").is_dir():
        print(_classifier(config, out))
        return
    folder, content = read_description(config.run)
    write = {"detection": _detector, "segmentation": _segmenter}[content["task"]]
    print(write(folder, content, config.size, out))


def _detector(folder: Path, content: dict, size: tuple[int, int] | None, out: Path) -> str:
    from downstream.detection.model import open_detector
    from downstream.detection.onnx import export_onnx

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
    from downstream.segmentation.model import open_segmenter
    from downstream.segmentation.onnx import export_onnx

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
    from ssld.network import open_network
    from zoo.errors import InputError as ZooError
    from zoo.export import export as write

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


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-"):
        words = ["--run", *words]
    return cli.command("ssld export", ExportConfig, export, words)


if __name__ == "__main__":
    raise SystemExit(main())
