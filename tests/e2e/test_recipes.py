"""Every recipe of configs/: what its header owes the reader, and that it trains as it stands.

Found by content, so that a new recipe is tested without a line here. Networks are the real ones, on
a few small pictures; only the big teachers are replaced.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from ssld.__main__ import main
from ssld.ablate import grid
from ssld.cli.commands import FIRST_STAGES
from ssld.common.settings import plain
from ssld.common.settings_file import read_settings
from ssld.distill.config import ClassifierConfig, DistillConfig
from ssld.distill.distill import distillation, open_networks
from ssld.distill.setup import open_data, start_run
from ssld.engine.progress import Progress
from ssld.engine.trainer import Trainer
from ssld.recipe.recipe import Recipe, open_recipe

CONFIGS_DIR = Path(__file__).parents[2] / "configs"
TABLE_2 = [
    *("mobilenetv1", "mobilenetv2", "mobilenetv3-small", "mobilenetv3-large"),
    *("hrnet-w18", "se-hrnet-w64", "resnet50d", "resnet101d", "resnet200d"),
]
SOME_FOLDERS = {f"data.{x}": CONFIGS_DIR for x in ("labeled", "unlabeled", "val")}
LARGE = ("hrnet", "se-hrnet", "resnet")
SMALL_RUN = {
    "steps": 2,
    "batch_size": 2,
    "precision": "fp32",  # bfloat16 takes seconds more on a CPU
    "augment.size": 64,
    "teacher.arch": "null",
    "teacher.verify": "false",
    "data.workers": 0,
    "trackers": "[]",
    "log_every_steps": 1,
    "checkpoint.keep": 1,
    "probe.every_epochs": 0,
}

Stages = dict[str, dict[str, Any]]


@cache
def content(file: Path) -> dict[str, Any]:
    return read_settings(file)


RECIPES = [
    x
    for x in sorted(CONFIGS_DIR.rglob("*.yaml"))
    if content(x).keys() & set(FIRST_STAGES) and "task" not in content(x)  # as `ssld methods` has
]
PUBLISHED = [x for x in RECIPES if not x.stem.startswith("quickstart")]
TRAINED = [x for x in PUBLISHED if "distill" in content(x) and "\nbase: " not in x.read_text()]
"""A recipe with a base has the student of that."""


def by_name(files: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("file", files, ids=[file.stem for file in files])


def header(file: Path) -> list[str]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]


def recipes_in(file: Path) -> list[Stages]:
    """{stage: settings} of a recipe, and of each trial of an ablation."""
    if "grid" in content(file):
        return [
            trial.recipe
            for trial in grid.build(str(file), read_settings(Path(file)), None, []).trials
        ]
    return [{stage: x or {} for stage, x in content(file).items() if stage != "out"}]


def words(settings: dict[str, Any]) -> list[str]:
    return [f"--{key}={value}" for key, value in settings.items()]


def checked(file: Path, stages: Stages) -> Recipe:
    """As `ssld recipe` checks it before anything runs."""
    folders = dict(SOME_FOLDERS)
    if file.stem == "quickstart-recipe":  # its teacher is what `ssld quickstart` made
        folders["teacher.checkpoint"] = CONFIGS_DIR
    overrides = [f"{key}={folder}" for key, folder in folders.items()]
    return open_recipe(str(file), {"out": "run", **stages}, None, overrides)


@cache
def as_it_stands(file: Path) -> tuple[Recipe, dict[str, ClassifierConfig]]:
    """A recipe, or the first trial of an ablation, and the settings of its stages."""
    recipe, found = checked(file, recipes_in(file)[0]), {}
    for stage in recipe.stages:
        before = plain(list(found.values())[-1]) if found else {}
        found[stage] = recipe.config(stage, before, "distill" in recipe.stages)
    return recipe, found


@by_name(RECIPES)
def test_a_header_says_command_hardware_time_and_expected_number(file):
    lines = header(file)
    said = " ".join(line.lstrip("# ") for line in lines)
    kind = "ablate" if "grid" in content(file) else "recipe"
    assert re.search(rf"\bssld[ .]{kind} configs/{file.relative_to(CONFIGS_DIR)}", said)
    assert "Hardware" in said and "ime: " in said and "Expected" in said
    assert len(lines) <= 20 and all(len(line) <= 100 for line in lines)


@by_name(PUBLISHED)
def test_numbers_of_others_are_said_to_be_theirs(file):
    said = " ".join(line.lstrip("# ") for line in header(file))
    assert re.search(r"Expected, published by the (paper|reference) and not measured by us", said)
    assert re.search(r"\d\d\.\d", said) and "Nobody has run this" in said and "CC-BY-NC" in said


@by_name(RECIPES)
def test_every_stage_of_every_trial_parses(file):
    folder = content(file)["out"]
    assert folder.startswith("runs/") and [folder] == [
        content(x)["out"] for x in RECIPES if content(x)["out"] == folder
    ]
    first, *others = recipes_in(file)
    assert list(as_it_stands(file)[1]) == list(first)
    for stages in others:
        if next(iter(stages.values())).get("seed") == 0:  # another seed cannot be wrong
            checked(file, stages)


@pytest.mark.parametrize("name", TABLE_2)
@pytest.mark.parametrize("variant", ["", "-reference"])
def test_the_recipes_of_table_2_say_what_the_paper_says(name, variant):
    found = as_it_stands(CONFIGS_DIR / f"distill/{name}{variant}.yaml")[1]
    config, finetune, *_ = found.values()
    large = name.startswith(LARGE)
    assert isinstance(config, DistillConfig) and config.epochs == 360 and config.augment.size == 224
    big = "fb_wsl_ig1b_ft_in1k" if variant else "fb_swsl_ig1b_ft_in1k"
    teacher = f"resnext101_32x16d.{big}" if large else "resnet50d_ssld"
    assert config.teacher.arch == teacher
    assert (config.optimizer.name, config.optimizer.momentum) == ("momentum", 0.9)
    assert config.schedule.warmup_epochs == 5
    if variant:
        assert (config.loss.name, config.teacher.batch_norm) == ("symmetric_kl", "batch")
    else:
        assert (config.batch_size, config.schedule.lr, config.loss.name) == (256, 0.1, "js")
        assert config.optimizer.weight_decay == (4e-5 if large else 1e-5)
        assert config.augment.policy == ("autoaugment" if large else "none")
        assert (finetune.batch_size, finetune.schedule.lr, finetune.epochs) == (256, 0.001, 30)


def test_the_reference_s_rates_are_those_of_its_table():
    table = {  # stage 1: batch, rate, weight decay; stage 2: epochs, batch, rate
        "mobilenetv1": (4096, 1.6, 3e-5, 30, 4096, 0.016),
        "mobilenetv2": (3072, 0.54, 1e-5, 30, 3072, 0.0054),
        "mobilenetv3-large": (5760, 3.65625, 1e-5, 30, 2048, 0.008),
        "mobilenetv3-small": (5760, 3.65625, 1e-5, 30, 6400, 0.025),
        "resnet50d": (1024, 0.4, 7e-5, 60, 1024, 0.004),
        "resnet101d": (1024, 0.4, 7e-5, 30, 1024, 0.004),
    }
    for name, row in table.items():
        one, two = as_it_stands(CONFIGS_DIR / f"distill/{name}-reference.yaml")[1].values()
        rates = [x.schedule.lr * x.batch_size / 256 for x in (one, two)]
        found = (one.batch_size, rates[0], one.optimizer.weight_decay)
        assert (*found, two.epochs, two.batch_size, rates[1]) == pytest.approx(row)
        assert (one.optimizer.no_decay == "norm") == name.startswith("mobilenetv3")


@pytest.fixture(scope="module")
def pictures(colours, teacher_file) -> dict[str, Any]:
    return {
        "teacher.checkpoint": teacher_file,
        "data.labeled": colours / "train",
        "data.unlabeled": colours / "unlabeled",
        "data.val": colours / "val",
    }


@by_name(TRAINED)
def test_two_steps_of_the_real_student(file, pictures, tmp_path):
    changes = {"distill": words({**SMALL_RUN, **pictures})}
    recipe = replace(as_it_stands(file)[0], out=tmp_path, overrides=changes)
    config = recipe.config("distill", {}, False)
    assert isinstance(config, DistillConfig)
    data = open_data(config)
    student, teacher, facts = open_networks(data, config)
    run = start_run(data, student, facts, teacher=teacher)
    trainer = Trainer(run, distillation(config, teacher, student), student)
    before = [x.detach()[:1].clone() for x in student.parameters()]  # all of it takes long
    batches = trainer.task.train_batches(run, 0, 2)
    with Progress(run, trainer.clock, 0, trainer.unreadables) as progress:
        for _ in range(2):
            trainer.train_step(batches, progress)
        progress.log(2, trainer.lr(), False)  # refuses a loss that is not finite
    changed = [not torch.equal(a, b[:1]) for a, b in zip(before, student.parameters(), strict=True)]
    assert sum(changed) > len(changed) / 2  # the first gradient of a branch that ends in 0 is 0


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mobilenetv3-small", {}),
        (
            "resnet50d",
            {
                "student.arch": "test_resnet",
                "fix.steps": 2,
                "fix.augment.size": 92,
                "fix.resolutions": "[64, 92]",
            },
        ),
    ],
    ids=["real student", "with the fix"],
)
def test_all_stages_one_after_another(name, changes, pictures, tmp_path, monkeypatch):
    # A report of each run takes long.
    monkeypatch.setattr("ssld.distill.report.write_report", lambda *_: None)
    file, second = CONFIGS_DIR / f"distill/{name}.yaml", {"finetune.steps": 2}
    given = words({**SMALL_RUN, **pictures, **second, **changes})
    assert main(["recipe", str(file), "--out", str(tmp_path), *given]) == 0
    stages = [stage for stage in content(file) if stage != "out"]
    assert all((tmp_path / x / "student" / "model.safetensors").is_file() for x in stages)
    assert (tmp_path / "report.html").is_file()
