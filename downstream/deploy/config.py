"""The settings of `ssld predict` and `ssld export`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from downstream.dense.config import ViewsConfig
from downstream.dense.networks import require_packages
from ssld.common.paths import check_file
from ssld.common.settings import Settings, Share, require


@dataclass(frozen=True)
class PredictConfig(Settings):
    """`ssld predict RUN IMAGES --out DIR`: draw what a trained network finds in images."""

    run: str = ""
    """Run folder of a detector, segmenter or classifier, or its `model` or `student` folder; or a
    folder of `ssld selftrain`, of which the student is taken. The first word is taken for it."""
    images: str = ""
    """A folder of images or another source of them; the second word is taken for it."""
    out: str = ""
    """Folder to write, new or empty."""
    score: Share = 0.3
    """Least score of a box that is drawn."""
    test: ViewsConfig = field(default_factory=ViewsConfig)
    max_unreadable: Share = 0.1
    """Stop when more than this share of the files cannot be read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.run and self.images),
            "give a run, images and --out: ssld predict RUN IMAGES --out DIR",
        )


@dataclass(frozen=True)
class ExportConfig(Settings):
    """`ssld export RUN`: write ONNX, and compare what onnxruntime makes of it with PyTorch."""

    run: str = ""
    """Run folder of a detector, segmenter or classifier, or a folder of `ssld selftrain`, of which
    the student is taken; the first word is taken for it."""
    out: str | None = None
    """File to write; by default `model.onnx` in the run folder."""
    size: tuple[int, int] | None = None
    """Height and width in px of the images of a segmenter or a detector; by default a segmenter's
    `augment.crop`, or a detector's `augment.test_size`, square."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.run), "no run is given: ssld export RUN")
        require(
            self.size is None or min(self.size) > 0,
            f"size is {self.size}: give height and width in px, both above 0",
        )

    @property
    def file(self) -> Path:
        """What is written."""
        return Path(self.out) if self.out else Path(self.run) / "model.onnx"


def check_export(config: ExportConfig) -> None:
    """
    Raises:
        InputError: a package is not installed, or a file is in the way that is not replaced.
    """
    require_packages("ssld export", "onnx", "onnxruntime")
    check_file("out", config.file, "onnx")
