"""Every recipe of Data Distillation parses; each kind of it builds its network and takes a step."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from scenes import boxes, make_scenes

from downstream.selftrain.config import SelftrainConfig
from downstream.selftrain.recipe import Selftrain, as_asked
from ssld.cli.run import main
from ssld.common.settings_file import read_settings
from ssld.engine.run_folder import read_lines

CONFIGS = Path(__file__).parents[3] / "configs/selftrain"
RECIPES = sorted(x for x in CONFIGS.glob("*.yaml") if not x.name.startswith("rethinking-"))
UNITED = ("resnet50", "resnet101", "resnext101-32x4d")
ROWS = {
    *(f"keypoints-{name}-{more}" for name in (*UNITED, "resnext101-64x4d")
      for more in ("un120", "s1m180")),
    *(f"boxes-{name}-un120" for name in UNITED), "keypoints-resnet50-co80", "boxes-resnet50-co80",
}  # fmt: skip
"""Of tables 1 and 4 of arXiv:1712.04440."""
SMALL = {"small-boxes", "small-keypoints", "small-masks"}
NARROW = {
    "faster_rcnn": "{channels: 16, head_channels: 16, rois_per_image: 16}",
    "keypoint_rcnn": "{channels: 16, head_channels: 16, rois_per_image: 16, "
    "keypoint_channels: [16]}",
    "fcos": "{channels: 64}",
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    root = make_scenes(tmp_path_factory.mktemp("scenes"), train=2, val=1)
    for split in ("train", "val"):
        content = json.loads((root / f"{split}.json").read_text())
        for category in content["categories"]:
            category["keypoints"] = ["corner", "middle"]
        for x in content["annotations"]:
            left, top, width, height = x["bbox"]
            x["keypoints"] = [left, top, 2, left + width // 2, top + height // 2, 2]
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


def words(file: Path, scenes: Path) -> list[str]:
    def place(split: str) -> str:
        return f"{scenes}::{split}" if "masks" in file.stem else boxes(scenes, split)

    given = [f"data.train={place('train')}", f"data.val={place('val')}"]
    if "co80" in file.stem:
        given.append(f"oracle.data.train={place('val')}")
    return given


def asked(file: Path, scenes: Path, tmp_path: Path, *more: str) -> Selftrain:
    return as_asked(SelftrainConfig(
        file=str(file), out=str(tmp_path / "run"), unlabeled=[str(scenes / "images/train")],
        overrides=[*words(file, scenes), *more],
    ))  # fmt: skip


def test_there_is_a_recipe_for_every_row_of_tables_1_and_4() -> None:
    assert {path.stem for path in RECIPES} == ROWS | SMALL


@pytest.mark.parametrize("file", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_what_its_name_says(file, scenes, tmp_path) -> None:
    recipe = asked(file, scenes, tmp_path)
    teacher, student = recipe.configs["teacher"], recipe.configs["student"]
    assert student.init is None and student.data.generated_share == 0.4
    assert student.schedule.milestone_shares == [0.7, 0.9]
    assert recipe.labels.test.flip and recipe.labels.threshold == "count"
    header = re.sub(r"\s*\\?\n#\s*", " ", file.read_text())
    assert f"configs/selftrain/{file.name}" in header and "Hardware" in header
    if file.stem in SMALL:
        assert "baseline" in recipe.configs or recipe.teacher_is_baseline
        return
    # Sections 4 and 5.3 of the paper.
    assert (teacher.steps, student.steps, teacher.batch_size) == (130_000, 360_000, 16)
    assert teacher.schedule.lr * teacher.batch_size / 256 == 0.02
    assert teacher.augment.test_size == 800
    sides = [factor * 800 for factor in recipe.labels.test.scales or ()]
    assert sides == [400, 500, 600, 700, 800, 900, 1000, 1100, 1200]
    name = file.stem.split("-", 1)[1].rpartition("-")[0].replace("-", "_")
    for config in recipe.configs.values():
        assert config.backbone.name.startswith(f"{name}.")
        kind = "keypoint_rcnn" if file.stem.startswith("keypoints") else "faster_rcnn"
        assert config.detector.name == kind
    assert ("oracle" in recipe.configs) == ("co80" in file.stem)


KINDS = ["keypoints-resnet50-un120", "boxes-resnet50-un120", *sorted(SMALL)]


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_of_recipe_takes_a_step(name, scenes, tmp_path) -> None:
    """What a row of the same kind differs in is the name of the backbone alone."""
    file = CONFIGS / f"{name}.yaml"
    recipe = asked(file, scenes, tmp_path)
    settings = tmp_path / "teacher.yaml"
    settings.write_text(json.dumps(read_settings(file)["teacher"]))
    given = [f"--{word}" for word in words(file, scenes)]
    small = ["--augment.crop=[64, 64]"] if recipe.task == "segmentation" else [
        "--augment.sizes=[64]", "--augment.test_size=64", "--augment.longest=null",
        f"--detector.args={NARROW[recipe.configs['teacher'].detector.name]}",
    ]  # fmt: skip
    assert main([recipe.task, "--config", str(settings), *given, *small, "--backbone=test_resnet",
                 "--backbone.pretrained=false", "--backbone.frozen_stages=0", "--steps=1",
                 "--batch_size=2", "--trackers=[]", "--data.workers=0",
                 f"--out={tmp_path / 'run'}"]) == 0  # fmt: skip
    lines = read_lines(tmp_path / "run/metrics.jsonl")
    assert [line["kind"] for line in lines] == ["train", "eval"]
