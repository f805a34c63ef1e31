"""Every recipe of Scale-Equivalent Distillation parses; each kind of it takes a step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scenes import boxes, make_scenes

from downstream.sed.config import ConsistencyConfig, SedConfig
from ssld.ablate import grid
from ssld.cli.parse import parse
from ssld.cli.run import main
from ssld.common.settings_file import read_settings
from ssld.engine.run_folder import read_lines
from ssld.recipe.recipe import open_recipe

CONFIGS = Path(__file__).parents[3] / "configs"
RECIPES = sorted(CONFIGS.glob("sed/*.yaml"))
ROWS = {  # steps, labeled images of a step, their rate; published AP, and of supervised training
    "coco-5": (180_000, 8, 0.01, "29.01", "18.47"),
    "coco-10": (180_000, 8, 0.01, "34.02", "23.86"),
    "coco-100": (180_000, 8, 0.01, "41.50", "38.40"),
    "coco-100-270k": (270_000, 16, 0.02, "43.40", "40.20"),
    "coco-35k": (180_000, 8, 0.01, "38.1", "31.3"),
    "voc": (40_000, 8, 0.01, "80.60", "74.30"),
    "coco-10-retinanet-r50": (180_000, 8, 0.005, "33.0", "23.6"),
    "coco-10-retinanet-r18": (180_000, 8, 0.005, "31.4", "21.5"),
    "voc-detr": (None, 16, 0.0001, "69.3", "64.9"),
}
"""Of tables 1, 2, 3 and 5."""
NARROW = {
    "coco-10": "{channels: 16, head_channels: 16, rois_per_image: 16}",
    "coco-10-retinanet-r50": "{channels: 16}",
    "voc-detr": "{num_queries: 8, width: 32, layers: 1, ffn_width: 32}",
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    return make_scenes(tmp_path_factory.mktemp("scenes"), train=4, val=1)


def places(scenes: Path) -> list[str]:
    given = [f"--data.{split}={boxes(scenes, split)}" for split in ("train", "val")]
    return [*given, f"--data.unlabeled={scenes / 'images/train'}"]


def test_there_is_a_recipe_for_every_row() -> None:
    assert {path.stem for path in RECIPES} == {*ROWS, "small-boxes"}


@pytest.mark.parametrize("file", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_what_its_name_says(file, scenes) -> None:
    config = parse("ssld sed", SedConfig, ["--config", str(file), "--out=run", *places(scenes)])
    header = re.sub(r"\s*\\?\n#\s*", " ", file.read_text())
    assert f"configs/sed/{file.name}" in header and "Hardware" in header
    assert config.schedule.decay == "step"
    if file.stem == "small-boxes":
        return
    assert config.consistency == ConsistencyConfig(reweight=True)
    steps, batch, lr, published, supervised = ROWS[file.stem]
    assert f"{published}; supervised {supervised}" in header
    assert (config.steps, config.batch_size) == (steps, batch)
    assert config.schedule.lr * batch / 256 == pytest.approx(lr)
    # Section 4: stem and first stage frozen, batch norm in eval mode; sides; table 9.
    assert config.backbone.frozen_stages == 2 and config.backbone.frozen_batch_norm
    assert (min(config.augment.sizes), max(config.augment.sizes)) == (640, 800)
    ema = config.ema
    assert (ema.decay, ema.end_decay, ema.schedule) == (0.99, 0.9, "step")
    share = {"5": 0.05, "10": 0.1}.get(file.stem.split("-")[1] if "-" in file.stem else "", 1.0)
    assert config.data.labeled_share == share


@pytest.mark.parametrize("name", NARROW)
def test_a_kind_of_recipe_takes_a_step(name, scenes, tmp_path) -> None:
    """What a row of the same kind differs in is names and numbers alone."""
    out = tmp_path / "run"
    assert main([
        "sed", "--config", str(CONFIGS / f"sed/{name}.yaml"), *places(scenes), f"--out={out}",
        "--backbone=test_resnet", "--backbone.pretrained=false", "--backbone.frozen_stages=0",
        "--backbone.freeze_batch_norm=null", f"--detector.args={NARROW[name]}", "--steps=1",
        "--epochs=null", "--batch_size=1", "--data.labeled_share=0.5", "--trackers=[]",
        "--data.workers=0", "--augment.sizes=[64]", "--augment.test_size=64",
        "--augment.longest=null", "--consistency.proposals=20",
        "--data.unlabeled_per_labeled=1",
    ]) == 0  # fmt: skip
    train, evaluation = read_lines(out / "metrics.jsonl")
    assert (train["kind"], evaluation["kind"]) == ("train", "eval")
    assert {"scale_classes", "distill_boxes", "classification"} <= train.keys()
    assert ("unlabeled_proposals" in evaluation) == (name == "coco-10")


def test_the_ablation_has_the_rows_of_table_4(scenes) -> None:
    file = str(CONFIGS / "ablate/sed.yaml")
    ablation = grid.build(
        file, read_settings(Path(file)), None, [word.removeprefix("--") for word in places(scenes)]
    )
    found = {}
    for trial in ablation.trials[::3]:  # the first of three seeds
        recipe = open_recipe(file, {"out": "run", **trial.recipe}, None, [])
        config = recipe.config("sed", {}, False)
        assert isinstance(config, SedConfig)
        x = config.consistency
        found[trial.values["losses"].text] = (
            *(x.scale_weight, x.distill_weight), x.soft, x.reweight)  # fmt: skip
        assert config.data.labeled_share == 0.1
    assert len(ablation.trials) == 21
    assert found == {
        "supervised": (0, 0, True, True),
        "scale": (0.1, 0, True, False),
        "scale-reweighted": (0.1, 0, True, True),
        "soft": (0, 1, True, False),
        "soft-reweighted": (0, 1, True, True),
        "scale-and-hard-reweighted": (0.1, 1, False, True),
        "all": (0.1, 1, True, True),
    }
    base = dict(read_settings(CONFIGS / "sed/coco-10.yaml"))
    assert read_settings(Path(file))["sed"] == base
