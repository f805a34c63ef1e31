"""Every recipe of detection and segmentation parses, builds its network and takes a step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scenes import boxes, make_scenes

from ssld.cli.run import main
from ssld.engine.run_folder import read_lines

CONFIGS = Path(__file__).parents[3] / "configs"
RECIPES = sorted([*CONFIGS.glob("detection/*.yaml"), *CONFIGS.glob("segmentation/*.yaml")])
SMALL = {
    "detection": ["--augment.sizes=[64]", "--augment.test_size=64", "--augment.longest=null"],
    "segmentation": ["--augment.crop=[64, 64]"],
}
"""What makes a recipe small; everything else is as it stands."""
NARROW = {"faster_rcnn": "{channels: 16}", "retinanet": "{channels: 16}", "yolov3": "{width: 32}"}
NARROW["yolov3_dcn"] = NARROW["yolov3"]
NARROW["retinanet_nas_fpn"] = "{channels: 16, repeats: 1}"
NARROW["retinanet_spinenet"] = "{head_convs: 1}"
SPINENET = ["--backbone=spinenet49", "--backbone.args={filter_size_scale: 0.1}"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("scenes"), train=2, val=1)


@pytest.mark.parametrize("file", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_takes_a_step(file, scenes, tmp_path) -> None:
    task, text = file.parent.name, file.read_text()
    backbone = "hrnet_w18_small" if "hrnet_w18_ssld" in text else "test_resnet"
    words = ["--config", str(file), f"--backbone={backbone}", "--backbone.pretrained=false",
             "--steps=1", "--epochs=null", "--batch_size=2", "--trackers=[]", "--data.workers=0",
             f"--out={tmp_path / 'run'}", *SMALL[task]]  # fmt: skip
    found = re.search(r"name: (\w+)", text)
    assert found is not None
    if found.group(1) == "retinanet_spinenet":
        words += SPINENET
    if found.group(1) in NARROW:
        words.append(f"--detector.args={NARROW[found.group(1)]}")
    train, val = (
        boxes(scenes, split) if task == "detection" else f"{scenes}::{split}"
        for split in ("train", "val")
    )
    assert main([task, *words, f"--data.train={train}", f"--data.val={val}"]) == 0
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["kind"] for line in lines] == ["train", "eval"]


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("fcos", "{channels: 64}"),
        ("detr", "{num_queries: 8, width: 32, layers: 1, ffn_width: 32}"),
    ],
)
def test_detectors_without_a_recipe_take_a_step(name, args, scenes, tmp_path) -> None:
    words = [f"--detector.name={name}", f"--detector.args={args}", "--backbone=test_resnet",
             "--backbone.pretrained=false", "--steps=1", "--batch_size=2", "--trackers=[]",
             "--data.workers=0", f"--out={tmp_path / 'run'}", *SMALL["detection"]]  # fmt: skip
    paths = [f"--data.{split}={boxes(scenes, split)}" for split in ("train", "val")]
    assert main(["detection", *words, *paths]) == 0
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["kind"] for line in lines] == ["train", "eval"]


def test_there_is_a_recipe_for_every_published_row() -> None:
    assert {path.stem for path in RECIPES} == {
        "faster-rcnn", "retinanet", "ttfnet", "yolov3",
        "yolov3-dcn", "deeplabv3plus", "fcn-hrnet",
        "fcn-resnet50d", "ocrnet",
        "retinanet-nas-fpn", "retinanet-spinenet49", "retinanet-spinenet49s",
        "nas-fpn-efficientnet-b7", "nas-fpn-efficientnet-l2",
    }  # fmt: skip
