"""`base: FILE` in a settings file: what it inherits, wherever settings are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ssld.ablate import grid
from ssld.ablate.command import _noted
from ssld.ablate.config import AblateConfig
from ssld.cli.parse import parse
from ssld.common.errors import InputError
from ssld.common.settings import plain
from ssld.common.settings_file import read_settings
from ssld.distill.config import DistillConfig

BASE = """
steps: 3
student: {arch: resnet18, args: {a: 1, b: 2}}
teacher: {arch: resnet50}
data: {labeled: [a, b], unlabeled: [c]}
augment: {size: 64}
schedule: {lr: 0.4}
"""


@pytest.fixture
def base(tmp_path) -> Path:
    (tmp_path / "sub").mkdir()
    file = tmp_path / "base.yaml"
    file.write_text(BASE)
    return file


def inheriting(base: Path, content: str, name: str = "sub/mine.yaml") -> Path:
    file = base.parent / name
    file.write_text(content)
    return file


def test_mappings_are_merged_and_the_rest_is_replaced(base):
    mine = inheriting(
        base,
        "base: ../base.yaml\nsteps: null\nepochs: 2\nschedule: null\n"
        "student: {args: {b: 3}}\ndata: {labeled: [d]}\n",
    )
    assert read_settings(mine) == {
        "steps": None,
        "student": {"arch": "resnet18", "args": {"a": 1, "b": 3}},
        "teacher": {"arch": "resnet50"},
        "data": {"labeled": ["d"], "unlabeled": ["c"]},
        "augment": {"size": 64},
        "epochs": 2,
    }
    config = parse("p", DistillConfig, ["--config", str(mine), "--out=o", "--augment.size=32"])
    assert (config.steps, config.epochs, config.student.arch) == (None, 2, "resnet18")
    assert (config.schedule.lr, config.augment.size) == (0.1, 32)  # the default, the word
    assert "base" not in plain(config)


def test_the_home_folder_and_absolute_names(base, monkeypatch):
    monkeypatch.setenv("HOME", str(base.parent))
    for name in ("~/base.yaml", base):
        assert read_settings(inheriting(base, f"base: {name}\n")) == read_settings(base)


def test_a_grid_and_its_note_have_all_of_it(base):
    whole = base.with_name("recipe.yaml")
    tree = yaml.safe_load(BASE)
    whole.write_text(yaml.safe_dump({"out": "runs/a", "distill": tree, "fix": {"steps": 1}}))
    content = "base: ../recipe.yaml\nout: runs/b\nfix: null\ngrid: {schedule.lr: [0.1, 0.2]}\n"
    mine = inheriting(base, content)
    ablation = grid.build(str(mine), read_settings(mine), None, [])
    assert ablation.out == Path("runs/b") and ablation.stages == ["distill"]
    assert [cell.recipe["distill"]["schedule"] for cell in ablation.trials] == [
        {"lr": 0.1},
        {"lr": 0.2},
    ]
    assert yaml.safe_load(_noted(AblateConfig(str(mine)))) == read_settings(mine)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("base: none.yaml", r"mine\.yaml, base: .*sub/none\.yaml: no such file"),
        ("base: list.yaml", r"list\.yaml holds no settings"),
        ("base: [a]", r"mine\.yaml: base is .*: name one settings file"),
        ("base:", r"base is 'None': name one"),
        ("base: mine.yaml", r"mine\.yaml has a base itself: name a file without one"),
        ("base: second.yaml", r"second\.yaml has a base itself"),
    ],
)
def test_what_is_no_base_gets_one_sentence(base, content, said):
    inheriting(base, "- a\n", "sub/list.yaml")
    inheriting(base, "base: ../base.yaml\n", "sub/second.yaml")
    mine = inheriting(base, content)
    with pytest.raises(InputError, match=said):
        read_settings(mine)
    with pytest.raises(InputError, match=said):
        parse("p", DistillConfig, ["--config", str(mine), "--out=o"])
