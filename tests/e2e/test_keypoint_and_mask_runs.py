"""Keypoint and Mask R-CNN as users run them: trained, exported, opened; sets that they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scenes import boxes, make_scenes

from downstream.dense.model import read_description
from downstream.detection.model import open_detector
from ssld.cli.run import main
from ssld.engine.run_folder import read_lines

COMMON = [
    "--steps=2", "--batch_size=2", "--trackers=[]", "--data.workers=0", "--log_every_steps=1",
    "--backbone=test_resnet", "--backbone.pretrained=false", "--schedule.warmup_epochs=0",
    "--augment.sizes=[64]", "--augment.test_size=64", "--augment.longest=128",
]  # fmt: skip
ARGS = "channels: 16, head_channels: 16, rois_per_image: 16, anchor_sizes: [9, 18, 36, 72, 144]"
OWN = {
    "keypoint_rcnn": ", keypoint_channels: [16]",
    "mask_rcnn": ", mask_channels: [16]",
    "faster_rcnn": "",
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes with outlines and three keypoints of each rectangle, one of them not labeled."""
    root = make_scenes(tmp_path_factory.mktemp("scenes"))
    for split in ("train", "val"):
        file = root / f"{split}.json"
        content = json.loads(file.read_text())
        for entry in content["annotations"]:
            x, y, w, h = entry["bbox"]
            entry["segmentation"] = [[x, y, x + w, y, x + w, y + h]]
            entry["keypoints"] = [x + 1, y + 1, 2, x + w - 2, y + 1, 1, 0, 0, 0]
            entry["num_keypoints"] = 2
        for category in content["categories"]:
            category["keypoints"] = ["left", "right", "end"]
            category["skeleton"] = [[1, 3], [2, 3]]
        file.write_text(json.dumps(content))
    return root


def train(name: str, root: Path, out: Path, *words: str) -> int:
    sources = [f"--data.{split}={boxes(root, split)}" for split in ("train", "val")]
    args = f"--detector.args={{{ARGS}{OWN[name]}}}"
    return main(
        ["detection", *COMMON, f"--detector.name={name}", args, *sources, f"--out={out}", *words]
    )


@pytest.mark.parametrize(("name", "term"), [("keypoint_rcnn", "keypoints"), ("mask_rcnn", "masks")])
def test_a_run_learns_keypoints_or_masks_besides(
    scenes: Path, tmp_path: Path, name: str, term: str
) -> None:
    out = tmp_path / "run"
    assert train(name, scenes, out) == 0
    lines = read_lines(out / "metrics.jsonl")
    steps = [line for line in lines if line["kind"] == "train"]
    assert len(steps) == 2 and all(line[term] > 0 for line in steps)
    (evaluated,) = [line for line in lines if line["kind"] == "eval"]
    assert {"ap", f"{term.removesuffix('s')}_ap"} <= evaluated.keys()
    folder, content = read_description(str(out))
    model = open_detector(folder, content)
    if term == "masks":
        assert "keypoints" not in content and model.keypoints is None
    else:
        assert content["keypoints"] == {
            "names": ["left", "right", "end"],
            "flip_pairs": [[0, 1]],
            "skeleton": [[0, 2], [1, 2]],
        }


def test_a_run_of_other_keypoints_is_no_start(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """As many, of other names: weights would fit."""
    first, other = tmp_path / "run", tmp_path / "other"
    assert train("keypoint_rcnn", scenes, first, "--steps=1") == 0
    assert train("keypoint_rcnn", scenes, tmp_path / "same", f"--init={first}", "--steps=1") == 0
    (other / "images").mkdir(parents=True)
    for split in ("train", "val"):
        (other / "images" / split).symlink_to(scenes / "images" / split)
        text = (scenes / f"{split}.json").read_text()
        (other / f"{split}.json").write_text(text.replace('"end"', '"middle"'))
    capsys.readouterr()
    assert train("keypoint_rcnn", other, tmp_path / "no", f"--init={first}") == 2
    said = capsys.readouterr().err
    assert "has keypoints" in said and "'end'" in said and "'middle'" in said


def test_a_detector_of_boxes_takes_a_set_of_keypoints_and_says_so(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert train("faster_rcnn", scenes, tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert "keypoints that faster_rcnn does not use" in said
    assert "keypoints" not in read_description(str(tmp_path / "run"))[1]


@pytest.mark.parametrize(
    ("name", "said"), [("keypoint_rcnn", "has no keypoints"), ("mask_rcnn", "have no mask")]
)
def test_a_set_without_what_a_detector_finds_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, name: str, said: str
) -> None:
    plain = make_scenes(tmp_path / "plain", train=2, val=2)
    assert train(name, plain, tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "run").exists()
