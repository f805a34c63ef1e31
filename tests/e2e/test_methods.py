"""`ssld methods` as users run it: all methods on the same labels, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from scenes import boxes, make_scenes

from downstream.methods.config import MethodsConfig, words
from downstream.methods.plan import as_asked
from ssld.cli.run import main
from ssld.common.errors import InputError

METHODS = ("supervised", "data_distillation", "rethinking", "oracle")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    make_scenes(root / "unlabeled", train=4, val=1, seed=1)
    return make_scenes(root / "human", train=6, val=3)


def tree(scenes: Path, **changes: Any) -> dict[str, Any]:
    data = {split: boxes(scenes, split) for split in ("train", "val")}
    settings = {
        "steps": 2, "batch_size": 2, "log_every_steps": 1, "trackers": [],
        "evaluate_every_epochs": 100, "checkpoint": {"every_steps": 1},
        "backbone": {"name": "test_resnet", "pretrained": False},
        "detector": {"name": "retinanet", "args": {"channels": 8, "score_threshold": 0.0}},
        "augment": {"sizes": [64], "longest": None, "test_size": 64},
        "schedule.lr": 0.05, "schedule.warmup_epochs": 0, "data": {"workers": 0, **data},
    }  # fmt: skip
    return {
        "task": "detection",
        "unlabeled": str(scenes.parent / "unlabeled/images/train"),
        "supervised": settings,
        "data_distillation": {"labels": {"workers": 0, "test": {"scales": [1.0]}}},
        "rethinking": {"labels": {"workers": 0, "threshold": 0.0}},
        **changes,
    }


def write(folder: Path, content: dict[str, Any]) -> str:
    file = folder / "methods.yaml"
    file.write_text(yaml.safe_dump(content))
    return str(file)


@pytest.fixture(scope="module")
def whole(scenes, tmp_path_factory) -> tuple[list[str], Path]:
    """The command, and what it wrote."""
    folder = tmp_path_factory.mktemp("whole")
    command = ["methods", write(folder, tree(scenes)), f"--out={folder / 'out'}"]
    command += ["--methods", *METHODS, "--shares", ".5", "--seeds", "2"]
    assert main(command) == 0
    return command, folder / "out"


def test_all_methods_are_side_by_side(whole) -> None:
    _, out = whole
    rows = json.loads((out / "methods.json").read_text())["rows"]
    assert [(x["method"], x["share"]) for x in rows] == [
        *((method, 0.5) for method in METHODS[:-1]), ("oracle", 1.0)
    ]  # fmt: skip
    assert all(list(x["scores"]) == ["0", "1"] for x in rows)
    for row in rows:
        others = set() if row["method"] == "oracle" else {"less_supervised", "less_oracle"}
        others -= {"less_supervised"} if row["method"] == "supervised" else set()
        assert set(row["differences"]) == others
    # 2 steps of 2 images, 4 with a generated minibatch; 4 unlabeled images, seen twice and once.
    costs = [(x["student_passes"], x["teacher_passes"]) for x in rows[:3]]
    assert costs == [(4, 0), (8, 8), (12, 4)]
    lists = {
        seed: {(out / "0.5" / seed / x / "labeled.txt").read_text()
               for x in ("supervised", "rethinking/student", "data_distillation/student")}
        for seed in "01"
    }  # fmt: skip
    assert all(len(found) == 1 for found in lists.values())
    assert lists["0"] != lists["1"]
    student = yaml.safe_load((out / "0.5/1/rethinking/student/config.yaml").read_text())
    assert student["init"] == str(out / "0.5/1/supervised") and student["accumulate"] == 2
    # Twice the images at half the rate per image: the step is as long as the supervised one.
    assert (student["batch_size"], student["schedule"]["lr"]) == (4, 0.025)
    assert "student passes" in (out / "methods.md").read_text()
    assert "rethinking" in (out / "report.html").read_text()


def test_the_same_command_does_nothing_anew(whole, capsys) -> None:
    command, out = whole
    before = (out / "methods.json").read_text()
    assert main(command) == 0
    assert "from the start" not in capsys.readouterr().out
    assert (out / "methods.json").read_text() == before


def asked(tmp_path: Path, content: dict[str, Any], *more: str):
    file = write(tmp_path, {"out": str(tmp_path / "out"), **content})
    return as_asked(MethodsConfig(file=file, methods=list(METHODS), overrides=list(more)))


def test_an_override_goes_to_all_runs_or_to_its_section(scenes, tmp_path) -> None:
    plan = asked(tmp_path, tree(scenes), "steps=5", "rethinking.student.schedule.lr=0.01")
    found = {}
    for trial in plan.trials():
        if trial.seed == 0 and trial.method in ("supervised", "oracle"):
            found[trial.method] = plan.run(trial)
        elif trial.seed == 0:
            found[trial.method] = plan.recipe(trial, trained=False).configs["student"]
    assert {x.steps for x in found.values()} == {5}
    assert [found[x].schedule.lr for x in METHODS] == [0.05, 0.05, 0.01, 0.05]
    assert [found[x].data.labeled_share for x in METHODS] == [0.1, 0.1, 0.1, 1.0]


@pytest.mark.parametrize(
    ("change", "more", "said"),
    [
        ({"rethinkin": {}}, (), "'rethinkin' is no section; did you mean 'rethinking'"),
        ({"task": "transfer"}, (), "task is 'transfer': give detection or segmentation"),
        ({"unlabeled": []}, (), "unlabeled is missing"),
        ({}, ("data.labeled_share=.2",), "data.labeled_share is decided for all runs"),
        ({}, ("rethinking.student.steps=3",), "rethinking has 3 steps, supervised 2"),
        ({}, ("rethinking.steps=3",), "rethinking: steps is '3': give labels: and student:"),
        ({}, ("schedule.lrr=3",), "did you mean"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_run(scenes, tmp_path, change, more, said) -> None:
    with pytest.raises(InputError, match=said):
        asked(tmp_path, {**tree(scenes), **change}, *more)
    assert not (tmp_path / "out").exists()


def test_lists_are_several_words() -> None:
    given = ["f.yaml", "--methods", "sed", "rethinking", "--shares", "0.1", "0.3", "--a.b", "1"]
    assert words(given) == [
        "--file=f.yaml", '--methods=["sed", "rethinking"]', "--shares=[0.1, 0.3]",
        '--overrides=["a.b=1"]',
    ]  # fmt: skip
