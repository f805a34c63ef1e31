"""`ssld methods` as users run it: all methods on the same labels, and what is said of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from scenes import boxes, make_scenes

from downstream.detection.config import DetectionConfig
from downstream.methods.analysis import Cost, _cost, analyse
from downstream.methods.config import MethodsConfig, words
from downstream.methods.plan import Trial, as_asked, unequal
from downstream.methods.report import markdown, write_report
from downstream.sed.config import SedConfig
from ssld.cli.parse import parse
from ssld.cli.run import main
from ssld.common.errors import InputError
from ssld.common.settings import plain
from ssld.engine.config import OptimizerConfig

METHODS = ("supervised", "data_distillation", "rethinking", "sed", "oracle")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    make_scenes(root / "unlabeled", train=4, val=1, seed=1)
    return make_scenes(root / "human", train=6, val=3)


def tree(scenes: Path, **changes: Any) -> dict[str, Any]:
    data = {split: boxes(scenes, split) for split in ("train", "val")}
    settings = {
        "steps": 2, "batch_size": 2, "log_every_steps": 1, "trackers": [],
        "evaluate_every_epochs": 100, "checkpoint": {"every_steps": 100},
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
        "sed": {"data.unlabeled_per_labeled": 1},
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
    # 2 steps of 2 images, 4 with a generated minibatch; 4 unlabeled images, seen twice and once; or
    # of 2 labeled and 2 unlabeled ones, those whole and small by the student.
    costs = [(x["student_passes"], x["teacher_passes"]) for x in rows[:4]]
    assert costs == [(4, 0), (8, 8), (12, 4), (12, 4)]
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
    page = (out / "report.html").read_text()
    assert "rethinking" in page and "over the share of the labels</figcaption>" in page


def test_the_same_command_does_nothing_anew(whole, capsys) -> None:
    command, out = whole
    before = (out / "methods.json").read_text()
    assert main(command) == 0
    assert "from the start" not in capsys.readouterr().out
    assert (out / "methods.json").read_text() == before


def asked(tmp_path: Path, content: dict[str, Any], *more: str, methods=METHODS):
    file = write(tmp_path, {"out": str(tmp_path / "out"), **content})
    return as_asked(MethodsConfig(file=file, methods=list(methods), overrides=list(more)))


def test_an_override_goes_to_all_runs_or_to_its_section(scenes, tmp_path) -> None:
    plan = asked(tmp_path, tree(scenes), "steps=5", "rethinking.student.schedule.lr=0.01")
    found = {}
    for trial in plan.trials():
        if trial.seed == 0 and trial.method in ("supervised", "sed", "oracle"):
            found[trial.method] = plan.run(trial)
        elif trial.seed == 0:
            found[trial.method] = plan.recipe(trial, trained=False).configs["student"]
    assert {x.steps for x in found.values()} == {5}
    assert [found[x].schedule.lr for x in METHODS] == [0.05, 0.05, 0.01, 0.05, 0.05]
    assert [found[x].data.labeled_share for x in METHODS] == [0.1, 0.1, 0.1, 0.1, 1.0]


def test_null_leaves_a_section_out_and_dots_are_levels(scenes, tmp_path) -> None:
    """As with `base`: what is left out is the default, or the teacher's."""
    content = tree(scenes)
    content["supervised"]["optimizer"] = {"weight_decay": 0.5, "momentum": 0.5}
    content["sed"] |= {"optimizer": None, "detector.args": None, "schedule.warmup_epochs": 3}
    content["rethinking"]["student"] = {"balance": None}
    plan = asked(tmp_path, content, "optimizer.momentum=0.6")
    first = {x.method: x for x in plan.trials() if x.seed == 0}
    supervised, sed = (plan.run(first[x]) for x in ("supervised", "sed"))
    assert (supervised.optimizer.weight_decay, supervised.optimizer.momentum) == (0.5, 0.6)
    assert sed.optimizer == OptimizerConfig() and sed.detector.args == {}
    assert sed.detector.name == "retinanet"
    assert (sed.schedule.lr, sed.schedule.warmup_epochs) == (0.05, 3)
    student = plan.recipe(first["rethinking"], trained=False).configs["student"]
    assert student.balance.alpha is None and student.optimizer.weight_decay == 0.5


@pytest.mark.parametrize(
    ("change", "more", "said"),
    [
        ({"rethinkin": {}}, (), "'rethinkin' is no section; did you mean 'rethinking'"),
        ({"task": "transfer"}, (), "task is 'transfer': give detection or segmentation"),
        ({"unlabeled": []}, (), "unlabeled is missing"),
        ({"unlabeled": 5}, (), "unlabeled is '5': give paths"),
        ({"supervised": None}, (), "supervised is missing"),
        ({"sed": {"data": {"unlabeled": "other"}}}, (), "sed: data.unlabeled is decided for all"),
        ({}, ("rethinking.student.data.train=other",), "data.train is decided for all runs"),
        ({}, ("data.labeled_share=.2",), "data.labeled_share is decided for all runs"),
        ({}, ("rethinking.student.steps=3",), "rethinking has 3 steps, supervised 2"),
        ({}, ("rethinking.steps=3",), "rethinking.steps: steps is '3': give labels: and student:"),
        ({}, ("schedule.lrr=3",), "^--schedule.lrr: unknown setting 'schedule.lrr'; did you mean"),
        ({}, ("rethinkin.labels.threshold=.4",), "'rethinkin'; did you mean 'rethinking'"),
        ({}, ("schedule.lr=x",), "^--schedule.lr: schedule.lr is 'x'"),
        ({"sed": {"steps": -1}}, ("steps=3",), "methods.yaml, sed: steps is -1"),
        ({}, ("schedule.decay=step", "schedule.milestones=[8]"), "Give schedule.milestone_shares"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_run(scenes, tmp_path, change, more, said) -> None:
    methods = ("rethinking", "sed") if any("rethinking" in x for x in more) else ("sed",)
    with pytest.raises(InputError, match=said):
        asked(tmp_path, {**tree(scenes), **change}, *more, methods=methods)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["rethinking", "sed"])
def test_held_out_images_are_refused_before_the_first_run(scenes, tmp_path, capsys, method) -> None:
    file = write(tmp_path, tree(scenes, unlabeled=str(scenes / "images/val")))
    command = ["methods", file, f"--out={tmp_path / 'out'}", "--methods", method]
    command += ["--schedule.warmup_epochs=.1"]
    assert main([*command, "--shares", ".5", "--seeds", "1"]) == 2
    said = capsys.readouterr()
    assert "held out" in said.err and "warning: Warm-up is 0.1 epochs" in said.out
    assert not (tmp_path / "out/0.5/0/supervised").exists()


def test_a_share_that_leaves_no_image_unlabeled_is_refused_before_the_first_run(
    scenes, tmp_path, capsys
) -> None:
    file = write(tmp_path, tree(scenes, unlabeled=str(scenes / "images/train")))
    command = ["methods", file, f"--out={tmp_path / 'out'}", "--methods", "sed", "--seeds", "1"]
    assert main([*command, "--shares", ".5", ".99"]) == 2
    assert "all 6 images are labeled ones" in capsys.readouterr().err
    assert not (tmp_path / "out/0.5/0/supervised").exists()


@pytest.mark.parametrize(
    ("method", "words", "student", "teacher"),
    [
        ("supervised", [], 3 * 2, 0),
        ("supervised", ["--classification.train=a"], 3 * (2 + 2), 0),
        ("supervised", ["--classification.train=a", "--classification.batch_size=5"], 3 * 7, 0),
        ("sed", [], 3 * 2 * (1 + 4 * 2), 3 * 2 * 4),
        ("sed", ["--consistency.scale_weight=0"], 3 * 2 * (1 + 4), 3 * 2 * 4),
        ("sed", ["--consistency.scale_weight=0", "--consistency.distill_weight=0"], 3 * 2, 0),
    ],
)
def test_a_cost_counts_all_images_that_go_through(
    tmp_path, method, words, student, teacher
) -> None:
    trial = Trial(method, 0.5, 0)
    folder = trial.folder(tmp_path)
    folder.mkdir(parents=True)
    kind = SedConfig if method == "sed" else DetectionConfig
    given = ["--data.train=a", "--data.val=b", "--backbone.name=c", "--steps=3", "--batch_size=2"]
    more = ["--data.unlabeled=d"] if method == "sed" else []
    config = parse("ssld", kind, ["--out=o", *given, *more, *words])
    (folder / "config.yaml").write_text(yaml.safe_dump(plain(config)))
    (folder / "run.json").write_text('{"steps": 3}')
    plan: Any = SimpleNamespace(out=tmp_path)
    assert _cost(plan, trial) == Cost(student, teacher)


def test_shares_that_are_nearly_the_same_have_folders_of_their_own() -> None:
    folders = {Trial("sed", share, 0).folder(Path("out")) for share in (0.5, 0.50000001)}
    assert len(folders) == 2 and Path("out/0.5/0/sed") in folders


def test_what_epochs_make_unequal_is_said(scenes, tmp_path) -> None:
    for more, said in (
        (["schedule.warmup_epochs=.1"], ["Warm-up is 0.1 epochs of each method's own images"]),
        (["schedule.warmup_epochs=1000000"], []),
        (["sed.evaluate_every_epochs=1"], ["Evaluations are 1 epochs of each method's own images"]),
        (["evaluate_every_epochs=1", "checkpoint.best=last"], []),
    ):
        found = unequal(asked(tmp_path, tree(scenes), *more, methods=("sed",)))
        assert len(found) == len(said) and all(map(str.startswith, found, said))


def test_a_warning_of_unequal_runs_is_in_the_report(whole, tmp_path) -> None:
    command, out = whole
    assert "epochs" not in (out / "methods.md").read_text()
    config = parse("ssld methods", MethodsConfig, words(command[1:]))
    analysis = replace(analyse(as_asked(config)), unequal=["Warm-up is 0.1 epochs of each"])
    write_report(analysis, tmp_path / "report.html")
    for text in (markdown(analysis), (tmp_path / "report.html").read_text()):
        assert "Warm-up is 0.1 epochs" in text


def test_the_small_recipe_has_equal_steps_and_a_header(scenes, tmp_path) -> None:
    file = Path(__file__).parents[2] / "configs/methods/small-boxes.yaml"
    data = [f"data.{split}={boxes(scenes, split)}" for split in ("train", "val")]
    unlabeled = [str(scenes.parent / "unlabeled/images/train")]
    plan = as_asked(MethodsConfig(
        file=str(file), out=str(tmp_path / "out"), unlabeled=unlabeled, overrides=data
    ))  # fmt: skip
    assert plan.methods == METHODS and plan.task == "detection"
    assert unequal(plan) == []
    header = file.read_text().partition("\ntask")[0]
    assert all(x in header for x in ("ssld methods configs/methods/small-boxes.yaml", "Hardware",
                                     "Time", "Expected"))  # fmt: skip


def test_a_misspelt_option_is_no_setting_of_a_run() -> None:
    with pytest.raises(InputError, match="--seds: unknown setting 'seds'; did you mean 'seeds'"):
        words(["f.yaml", "--seds", "3"])


def test_lists_are_several_words() -> None:
    given = ["f.yaml", "--methods", "sed", "rethinking", "--shares", "0.1", "0.3", "--a.b", "1"]
    assert words(given) == [
        "--file=f.yaml", '--methods=["sed", "rethinking"]', "--shares=[0.1, 0.3]",
        '--overrides=["a.b=1"]',
    ]  # fmt: skip
