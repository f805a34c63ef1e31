"""Recipes of Rethinking Pre-training and Self-training: one for each row of its tables 2 to 8, with
what appendix H says of it, and each kind takes a step of teacher and student."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from scenes import boxes, make_scenes

from downstream.selftrain.config import SelftrainConfig
from downstream.selftrain.recipe import Selftrain, as_asked
from ssld.cli.run import main
from ssld.common.settings import plain
from ssld.engine.run_folder import read_lines

CONFIGS = Path(__file__).parents[3] / "configs/selftrain"
TABLES: dict[str, tuple[str, str, int, int, float]] = {
    **{f"boxes-b7-s{n}": (f"table 2, Augment-S{n}", f"{sup} {self}", a, b, alpha)
       for n, sup, self, a, b, alpha in (
           (1, 39.2, 40.9, 45_000, 45_000, 1.0), (2, 41.5, 43.0, 90_000, 90_000, 1.0),
           (3, 43.9, 45.4, 90_000, 90_000, 0.5), (4, 44.3, 45.6, 120_000, 90_000, 0.5))},
    **{f"boxes-b7{start}-{share}": (f"table 3, {share} %", f"{sup} {self}", a, b, alpha)
       for start, share, sup, self, a, b, alpha in (
           ("", 20, 30.7, 34.1, 45_000, 90_000, 3.0), ("", 50, 39.6, 41.4, 90_000, 90_000, 1.0),
           ("-imagenet", 20, 33.3, 36.0, 5_625, 90_000, 3.0),
           ("-imagenet", 50, 38.8, 40.5, 22_500, 45_000, 1.0),
           ("-imagenet", 100, 43.3, 44.6, 90_000, 90_000, 1.0),
           ("-noisy-student", 20, 35.9, 37.2, 5_625, 90_000, 3.0),
           ("-noisy-student", 50, 39.9, 41.5, 11_250, 45_000, 1.0),
           ("-noisy-student", 100, 43.8, 44.6, 45_000, 45_000, 0.25))},
    "boxes-resnet50-s4": ("table 4", "41.1 41.9", 200_000, 120_000, 0.25),
    "boxes-spinenet143-oid": ("table 5", "50.9 52.4", 472_000, 472_000, 0.25),
    "boxes-spinenet190-oid": ("table 5", "52.6 54.2", 370_000, 370_000, 0.5),
    "masks-b7-s4": ("table 6", "85.2 84.8 86.7", 40_000, 40_000, 1.0),
    "masks-l2-s4": ("table 6", "88.7 90.0", 20_000, 20_000, 1.0),
    "masks-b7-s1": ("table 8, Augment-S1", "83.9 84.7 85.6", 40_000, 40_000, 1.0),
    "boxes-b7-20-joint": ("table 7", "30.7 34.1 33.6 35.1", 45_000, 90_000, 2.0),
    "boxes-b7-imagenet-20-joint": ("table 7", "33.3 36.0 34.0 36.6", 5_625, 90_000, 2.0),
}  # fmt: skip
"""{recipe: (row, published numbers, steps of teacher and student, alpha)}; alpha and steps are of
appendix H of arXiv:2006.06882."""
RANDOM = re.compile(r"boxes-(b7-(s\d|\d+)|resnet|spinenet)")
COCO, IMAGENET, OPEN_IMAGES = 118_287, 1_281_167, 1_743_042


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    root = make_scenes(tmp_path_factory.mktemp("scenes"), train=2, val=1)
    for name in ("even", "odd"):
        (root / "labeled" / name).mkdir(parents=True)
        Image.effect_noise((40, 40), 90).convert("RGB").save(root / "labeled" / name / "0.png")
    return root


def place(name: str, scenes: Path, split: str) -> str:
    return boxes(scenes, split) if "masks" not in name else f"{scenes}::{split}"


def asked(name: str, scenes: Path, out: Path, *more: str) -> Selftrain:
    given = [f"data.{split}={place(name, scenes, split)}" for split in ("train", "val")]
    if "masks-b7" in name:
        given.append(f"oracle.data.train={place(name, scenes, 'val')}")
    if "joint" in name:
        given.append(f"student.classification.train={scenes / 'labeled'}")
    return as_asked(SelftrainConfig(
        file=str(CONFIGS / f"rethinking-{name}.yaml"), out=str(out),
        unlabeled=[str(scenes / "images/train")], overrides=[*given, *more],
    ))  # fmt: skip


def test_there_is_a_recipe_for_every_row_of_the_tables() -> None:
    found = {path.stem.removeprefix("rethinking-") for path in CONFIGS.glob("rethinking-*.yaml")}
    assert found == {*TABLES, "small"}


def rate(config: Any) -> float:
    return config.schedule.lr * config.batch_size / 256


@pytest.mark.parametrize("name", TABLES)
def test_a_recipe_is_what_the_paper_says(name: str, scenes: Path, tmp_path: Path) -> None:
    row, published, before, steps, alpha = TABLES[name]
    recipe = asked(name, scenes, tmp_path)
    teacher, student = recipe.configs["teacher"], recipe.configs["student"]
    header = re.sub(r"\s*\\?\n#\s*", " ", (CONFIGS / f"rethinking-{name}.yaml").read_text())
    assert row in header and f"configs/selftrain/rethinking-{name}.yaml" in header
    assert all(number in header for number in published.split()) and "Hardware" in header
    assert (teacher.steps, student.steps, student.balance.alpha) == (before, steps, alpha)
    assert (teacher.balance.alpha, student.balance.decay) == (None, 0.9997)
    # Section 3.2.
    spine, masks, large = ("spinenet" in name, "masks" in name, "l2" in name)
    batch = 128 if spine else 256
    assert teacher.batch_size == batch
    assert student.batch_size == (batch if large else 2 * batch) and student.accumulate == 2
    assert (student.data.minibatch, student.data.generated_share) == ("apart", 0.5)
    peak = 0.2 if large else 0.08 if masks else 0.15 if "190" in name else 0.14 if spine else 0.32
    assert rate(teacher) == rate(student) == pytest.approx(peak)
    assert teacher.optimizer.weight_decay == (1e-5 if masks else 4e-5 if spine else 1e-4)
    assert student.init == str(tmp_path / "teacher")
    assert not teacher.backbone.frozen_batch_norm and teacher.sync_batch_norm
    assert teacher.backbone.pretrained == (RANDOM.match(name) is None)
    known = {"-l2-": "efficientnet_l2.ns", "masks-b7": "b7.ns", "noisy": "b7.ns", "-b7-": "b7.aa",
             "resnet50": "resnet50.", "net143": "spinenet143", "net190": "spinenet190"}  # fmt: skip
    wanted = next(value for key, value in known.items() if key in name)
    assert wanted in teacher.backbone.name == student.backbone.name
    if masks:
        assert recipe.labels.test.scales == [0.5, 0.75, 1, 1.25, 1.5, 1.75]
        assert recipe.labels.pixel_threshold == 0.5 and teacher.segmenter.name == "nas_fpn"
    else:
        assert recipe.labels.threshold == 0.5 and not recipe.labels.test.scales
        assert teacher.augment.test_size == (1280 if spine else 640)
        assert teacher.detector.args.get("soft_nms_sigma") == (0.3 if spine else None)
    # Section 3.1, table 1.
    policy = {"s1": ("none", (0.8, 1.2)), "s2": ("autoaugment", (0.8, 1.2)),
              "s3": ("autoaugment", (0.5, 2.0)), "oid": ("autoaugment", (0.5, 2.0))}  # fmt: skip
    last = name.rpartition("-")[2]
    expected = policy.get(last, ("randaugment", (0.5, 2.0)))
    assert (student.augment.policy, tuple(student.augment.scale)) == expected
    assert (teacher.augment.policy, teacher.augment.scale) == (
        ("none", (0.1, 1.9)) if spine else (student.augment.policy, student.augment.scale)
    )
    warmup_is_as_long_as_in_the_paper(name, teacher, student)


def warmup_is_as_long_as_in_the_paper(name: str, teacher: Any, student: Any) -> None:
    """1,000 steps, SpineNet's 2,000, in the epochs of the paper's sets; 500 of masks."""
    human = 1464 if "masks" in name else round(teacher.data.labeled_share * COCO)
    generated = 9118 if "masks" in name else OPEN_IMAGES if "oid" in name else IMAGENET
    steps = 500 if "masks" in name else 2000 if "oid" in name else 1000
    for config, images in ((teacher, human), (student, human + generated)):
        epochs = config.schedule.warmup_epochs
        assert epochs * images / config.batch_size == pytest.approx(steps, rel=1e-3)


@pytest.mark.parametrize("name", ["boxes-b7-20-joint", "boxes-b7-imagenet-20-joint"])
def test_joint_training_alone_is_the_baseline(name: str, scenes: Path, tmp_path: Path) -> None:
    recipe = asked(name, scenes, tmp_path)
    configs = recipe.configs
    assert [x.classification.weight for x in configs.values()] == [0.5, 0.5, 0.2]
    assert [bool(x.classification.train) for x in configs.values()] == [False, True, True]
    assert [x.labeled_batch_size for x in configs.values()] == [0, 256, 256]
    baseline = configs["baseline"]
    assert baseline.steps == (90_000 if "imagenet" in name else 45_000)
    assert (baseline.batch_size, baseline.accumulate, rate(baseline)) == (256, 1, 0.32)
    assert baseline.init is None and baseline.data.generated == []


NARROW = {
    "retinanet_bn": ["--detector.args={channels: 16, head_convs: 1}"],
    "retinanet_spinenet": ["--detector.args={activation: silu, soft_nms_sigma: 0.3, channels: 16, "
                           "head_convs: 1}", "--backbone=spinenet49s"],
    "fcos": ["--detector.args={channels: 64}"],
    "nas_fpn": [],
}  # fmt: skip
KINDS = ["boxes-b7-20-joint", "boxes-spinenet143-oid", "masks-b7-s1", "small"]


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_of_recipe_takes_a_step(name: str, scenes: Path, tmp_path: Path) -> None:
    """The student's, which has all that is new; in what rows of a kind differ is data."""
    student = asked(name, scenes, tmp_path).configs["student"]
    tree = {k: v for k, v in plain(student).items() if k not in ("resume", "overwrite")}
    tree["data"]["generated"] = [place(name, scenes, "train")]
    tree["init"] = None
    settings = tmp_path / "student.yaml"
    settings.write_text(yaml.safe_dump(tree))
    masks = "masks" in name
    small = ["--augment.crop=[64, 64]"] if masks else [
        "--augment.sizes=[64]", "--augment.test_size=64"]  # fmt: skip
    small += NARROW[student.segmenter.name if masks else student.detector.name]
    small += ["--classification.batch_size=2", "--classification.size=64"] * ("joint" in name)
    task = "segmentation" if masks else "detection"
    assert main([task, "--config", str(settings), "--backbone=test_resnet", *small,
                 "--backbone.pretrained=false", "--backbone.frozen_stages=0", "--steps=1",
                 "--backbone.args={}", "--batch_size=4", "--precision=fp32", "--trackers=[]",
                 "--data.workers=0", "--data.labeled_share=1",
                 f"--out={tmp_path / 'run'}"]) == 0  # fmt: skip
    lines = read_lines(tmp_path / "run/metrics.jsonl")
    assert [line["kind"] for line in lines] == ["train", "eval"]
    assert lines[0]["factor_generated"] == 1 and lines[0]["loss_generated"] > 0
    assert ("loss_classes" in lines[0]) == ("joint" in name)
