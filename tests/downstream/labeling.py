"""What the tests of pseudo-labels share: run folders of networks with random weights, and a teacher
that finds what a test says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from downstream.backbone.config import BackboneConfig
from downstream.dense.model import read_description, save
from downstream.detection.config import BoxAugmentConfig
from downstream.detection.data.keypoints import Keypoints
from downstream.detection.model import DetectionModel
from downstream.detection.model import build as build_detector
from downstream.pseudo_label import teacher
from downstream.segmentation.model import SegmentationModel, open_segmenter
from downstream.segmentation.model import build as build_segmenter
from ssld.cli.run import main

RCNN = {"channels": 32, "anchor_sizes": [8, 16, 32, 64, 128]}
ARGS = {
    "ttfnet": {},
    "keypoint_rcnn": {**RCNN, "keypoint_channels": [16]},
    "mask_rcnn": {**RCNN, "mask_channels": [16]},
}
KEYPOINTS = Keypoints(("top", "left", "right"), ((1, 2),), ((0, 1), (0, 2)))
BACKBONE = BackboneConfig("test_resnet", pretrained=False)


def detector(
    run: Path, train: str, val: str | None, names: list[str], name: str = "ttfnet", **test: Any
) -> Path:
    """A run folder with a detector that was never trained."""
    torch.manual_seed(0)
    keypoints = KEYPOINTS if name == "keypoint_rcnn" else None
    network = build_detector(name, BACKBONE, len(names), ARGS[name], keypoints)
    if name == "mask_rcnn":  # or no pixel would be of an object
        network.part_predictor.mask_fcn_logits.bias.data.add_(1)
    augment = BoxAugmentConfig(sizes=[64], test_size=64, longest=96)
    save(
        DetectionModel(network, names, keypoints), run / "model", 1, task="detection",
        head={"name": name, "args": ARGS[name]}, view={**asdict(augment), "test": test},
        keypoints=keypoints and asdict(keypoints),
    )  # fmt: skip
    return _with_data(run, train, val)


def segmenter(run: Path, train: str, val: str | None, names: list[str]) -> Path:
    """The same of a segmenter, whose probabilities are far apart."""
    torch.manual_seed(0)
    network = build_segmenter("fcn", BACKBONE, len(names))
    with torch.no_grad():
        last = [x for x in network.modules() if isinstance(x, torch.nn.Conv2d)][-1]
        last.weight.mul_(40)
        noise = torch.randn(1, 3, 64, 64)
        last.bias.sub_(network.eval()(noise).mean((0, 2, 3)))
    view = {"crop": None, "stride": None, "scales": [1.0], "flip": False,
            "trained_on": [48, 64], "palette": [[40 * i, 0, 255 - 40 * i] for i, _ in
            enumerate(names)]}  # fmt: skip
    save(SegmentationModel(network, names), run / "model", 1, task="segmentation",
         head={"name": "fcn"}, view=view)  # fmt: skip
    return _with_data(run, train, val)


def build_of(run: Path) -> SegmentationModel:
    """The segmenter in a run folder."""
    return open_segmenter(*read_description(str(run)))


def _with_data(run: Path, train: str, val: str | None) -> Path:
    data = {"train": [train], "val": [val] if val else []}
    (run / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    return run


def images(folder: Path, count: int, size: tuple[int, int] = (40, 60), first: int = 0) -> Path:
    """PNG files `00.png`, ..., whose first pixel has their number as its red."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        pixels = np.random.default_rng(i).integers(0, 255, (*size, 3)).astype(np.uint8)
        pixels[0, 0, 0] = i
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


Instance = dict[str, Any]


def finds(monkeypatch: pytest.MonkeyPatch, of: Callable[[int], list[Instance]]) -> list[int]:
    """Let every detector find in image i the instances `of(i)`, {"label", "score", "box"} and
    maybe "keypoints" [k, 3] or "masks" [m, m]; returns the numbers of the images that are seen."""
    seen: list[int] = []

    def predict(model: Any, pixels: torch.Tensor, *_: Any) -> dict[str, torch.Tensor]:
        number = int(pixels[0, 0, 0])
        seen.append(number)
        found = of(number)
        result = {
            "boxes": torch.tensor([x["box"] for x in found], dtype=torch.float32).reshape(-1, 4),
            "scores": torch.tensor([x["score"] for x in found], dtype=torch.float32),
            "labels": torch.tensor([x["label"] for x in found], dtype=torch.int64),
        }
        for name in ("keypoints", "masks"):
            if found and name in found[0]:
                result[name] = torch.tensor(np.array([x[name] for x in found])).float()
        return result

    monkeypatch.setattr(teacher, "predict", predict)
    return seen


def label(run: Path, source: Path | str, out: Path, *words: str) -> int:
    """`ssld pseudo-label`; returns its exit code."""
    given = [f"--images={source}", f"--out={out}", "--workers=0", *words]
    return main(["pseudo-label", str(run), *given])


def read(out: Path, name: str = "pseudo_labels.json") -> dict[str, Any]:
    return json.loads((out / name).read_text())


def contents(out: Path) -> dict[str, bytes]:
    """The files of a set."""
    names = ("pseudo_labels.json", "annotations.json", "classes.json", "images.parquet",
             "report.html")  # fmt: skip
    files = [out / name for name in names if (out / name).is_file()]
    files += sorted((out / "masks").rglob("*.png"))
    return {str(file.relative_to(out)): file.read_bytes() for file in files}
