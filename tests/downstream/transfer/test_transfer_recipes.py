"""The grids of configs/transfer-*.yaml: what their headers owe the reader, and that they parse."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from downstream.ab import grid as ab_grid
from downstream.ab.grid import ABConfig
from downstream.transfer.config import TransferConfig
from ssld.ablate import grid
from ssld.cli.parse import parse
from ssld.common.settings_file import read_settings
from ssld.recipe.recipe import open_recipe

CONFIGS = Path(__file__).parents[3] / "configs"
FILES = sorted(CONFIGS.glob("transfer/*.yaml"))
FIXED = CONFIGS / "transfer/fixed.yaml"
GRIDS = [file for file in FILES if file != FIXED]


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_header_says_command_hardware_time_and_expected_number(file):
    lines = file.read_text(encoding="utf-8").splitlines()
    lines = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    said = " ".join(line.lstrip("# ") for line in lines)
    assert f"configs/transfer/{file.name}" in said and "Hardware" in said and "ime: " in said
    assert re.search(r"Expected, published by the (paper|reference) and not measured by us", said)
    assert re.search(r"\d\d\.\d", said) and "Nobody has run this" in said
    assert len(lines) <= 20 and all(len(line) <= 100 for line in lines)


@pytest.mark.parametrize("file", GRIDS, ids=[file.stem for file in GRIDS])
def test_the_search_is_the_references(file):
    ablation = grid.build(str(file), read_settings(Path(file)), None, [])
    assert len(ablation.trials) == 196 and ablation.stages == ["transfer"]
    rates, decays, smoothing, mixup = ablation.axes
    assert [x.value for x in rates.values] == [0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001]
    assert [x.value for x in decays.values] == [1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6]
    assert [x.value for x in smoothing.values] == [0, 0.1]
    assert [x.value for x in mixup.values] == [0, 0.2]
    last = ablation.trials[-1]
    config = open_recipe(str(file), last.recipe, "out", []).config("transfer", {}, False)
    assert isinstance(config, TransferConfig) and config.data.dataset == file.stem
    assert config.data.protocol == "search" and config.checkpoint.best == "last"
    assert (config.schedule.lr, config.optimizer.weight_decay, config.mixup) == (1e-4, 1e-6, 0.2)


def test_the_comparison_is_on_test_images():
    names = ["resnet50d.gluon_in1k", "resnet50d_ssld"]
    more = ["data.dataset=sun397", "schedule.lr=0.01"]
    config = ABConfig(task="transfer", file=str(FIXED), backbones=names, overrides=more)
    ablation, _ = ab_grid.build(config, read_settings(FIXED))
    assert len(ablation.trials) == 12 and ablation.out == Path("runs/transfer-fixed")
    for trial in ablation.trials:
        found = parse(
            "x", TransferConfig, [], settings=("F", {"out": "o", **trial.recipe["transfer"]})
        )
        assert found.data.protocol == "final" and found.data.dataset == "sun397"
        assert found.schedule.lr == 0.01 and found.probe.every_epochs > 0
        assert found.backbone.name in names and found.backbone.lr in ("same", "tuned")
