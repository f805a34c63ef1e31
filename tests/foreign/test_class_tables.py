"""Classes of teacher, student and labels that do not go together: one rule for all commands, and a
recipe asks it for all stages before its first step."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pictures
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ssld.__main__ import main
from ssld.common.errors import InputError
from ssld.data.labels import ClassTable, differ, misfit
from ssld.data.sources import open_source

NAMED = ClassTable("the model", 3, ["blue", "green", "red"])
NAMELESS = ClassTable("the model", 3, None)
FLOWERS = ["daisy", "iris"]


@pytest.fixture(scope="module")
def flowers(colours, tmp_path_factory) -> Path:
    """Two classes that the teacher of three does not have."""
    root = tmp_path_factory.mktemp("flowers")
    for name, colour in zip(FLOWERS, ("blue", "red"), strict=True):
        shutil.copytree(colours / "val" / colour, root / name)
    return root


def manifest(colours: Path, path: Path, labels: list[Any]) -> str:
    files = sorted(map(str, (colours / "train").rglob("*.png")))
    labels = [labels[i % len(labels)] for i in range(len(files))]
    pq.write_table(pa.table({"sample_id": files, "path": files, "label": labels}), path)
    return str(path)


def test_one_sentence_for_each_kind(colours, flowers, tmp_path):
    (one,) = [open_source(str(flowers))]
    assert misfit(NAMELESS, [one], "data.val") == (
        "data.val names 2 classes (daisy, iris) and the model has 3, whose names it does not say"
    )
    assert misfit(NAMED, [one], "data.val") == (
        "data.val has the class 'daisy', which is not among the 3 of the model (blue, green, red); "
        "2 of its 2 classes are not"
    )
    beyond = open_source(manifest(colours, tmp_path / "beyond.parquet", [0, 1, 2, 3]))
    said = misfit(NAMED, [beyond], "data.val")
    assert said and "label 3 of " in said and "which count from 0 to 2" in said
    assert misfit(NAMED, [beyond], "data.val", limit=3) is None


@pytest.mark.parametrize("labels", [[0, 1, 2], [0], [None], [None, 2], ["red", "blue"]])
@pytest.mark.parametrize("table", [NAMED, NAMELESS])
def test_labels_that_fit_are_not_accused(colours, tmp_path, labels, table):
    source = open_source(manifest(colours, tmp_path / "m.parquet", labels))
    said = misfit(table, [source], "data.val")
    few_names = labels == ["red", "blue"] and table is NAMELESS  # two names: which are they?
    assert (said is None) != few_names
    assert misfit(table, [open_source(str(colours / "unlabeled"))], "data.val") is None
    assert misfit(table, [open_source(str(colours / "val"))], "data.val") is None


def test_networks_are_told_apart_by_number_names_and_order():
    other = ClassTable("the teacher", 3, ["green", "blue", "red"])
    said = differ(NAMED, other)
    assert said and "in another order: class 0 is 'blue' of the one and 'green'" in said
    said = differ(NAMED, ClassTable("the teacher", 3, ["blue", "green", "rot"]))
    assert said and "has the class 'red', which the teacher does not have" in said
    said = differ(NAMED, ClassTable("the teacher", 4, None))
    assert said == "the model has 3 classes but the teacher has 4"
    assert differ(NAMED, NAMED) is None and differ(NAMED, NAMELESS) is None


def test_teachers_that_count_their_classes_differently_are_not_averaged():
    from ssld.models.config import TeacherConfig
    from ssld.models.opening import open_network
    from ssld.models.teacher import Teacher

    networks = [open_network("teacher", arch="test_resnet", num_classes=3) for _ in range(2)]
    networks[0].label_names = ["blue", "green", "red"]
    configs = [TeacherConfig(arch="test_resnet", dtype="fp32")] * 2
    assert Teacher(networks[::-1], configs).label_names == ["blue", "green", "red"]
    networks[1].label_names = ["green", "blue", "red"]
    with pytest.raises(InputError, match="in another order.*averaging needs the same"):
        Teacher(networks, configs)


@pytest.fixture
def recipe(colours, teacher_file, tmp_path, monkeypatch):
    """Writes a recipe of a few steps whose later stages are given; returns its file."""
    pictures.leave_out(monkeypatch)

    def write(**stages: Any) -> str:
        first = {"steps": 2, "batch_size": 8, "student.arch": "test_resnet", "augment.size": 32}
        first |= {"teacher.checkpoint": str(teacher_file), "teacher.verify": False}
        first |= {"data.labeled": str(colours / "train"), "data.val": str(colours / "val")}
        first |= {"data.workers": 0, "probe.every_epochs": 0, "trackers": []}
        tree = {"out": str(tmp_path / "out"), "distill": first, **stages}
        (tmp_path / "F.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        return str(tmp_path / "F.yaml")

    return write


def human(**settings: Any) -> dict[str, Any]:
    return {"steps": 2, "targets": "human", **settings}


CASES = ["labeled", "val", "beyond", "fix", "number", "top1"]


@pytest.mark.parametrize("case", CASES)
def test_a_recipe_is_refused_before_its_first_step(
    recipe, flowers, colours, tmp_path, capsys, case
):
    numbers = manifest(colours, tmp_path / "beyond.parquet", [0, 1, 2, 7])
    new, both = "finetune.student.num_classes 2 gives it a new classifier", {"steps": 2}
    stages, words = {
        "labeled": ({"finetune": human(**{"data.labeled": str(flowers)})},
                    ["finetune: data.labeled names 2 classes (daisy, iris)", new]),
        "val": ({"finetune": human(**{"data.val": str(flowers)})},
                ["finetune: data.val names 2 classes", "has 3"]),
        "beyond": ({"finetune": human(**{"data.labeled": numbers})}, ["label 7 of", "0 to 2"]),
        "fix": ({"finetune": both, "fix": human(**{"data.labeled": str(flowers)})},
                ["fix: data.labeled names 2 classes", "give images of the student's classes"]),
        "number": ({"finetune": {"steps": 2, "student.num_classes": 2}},
                   ["finetune: the student has 2 classes but the teacher has 3"]),
        "top1": ({"finetune": {"data.val": str(flowers), "checkpoint.best": "top1"}},
                 ["finetune: data.val names 2 classes", "checkpoint.best is top1"]),
    }[case]  # fmt: skip
    assert main(["recipe", recipe(**stages)]) == 2
    said = capsys.readouterr().err.splitlines()
    error = said[-1]
    assert not any("error" in line for line in said[:-1]) and not (tmp_path / "out").exists()
    assert all(word in error for word in words), error
    assert ("`ssld transfer`" in error) == (case != "top1")
    assert "numbers in a manifest" not in error  # the first flower would be the first class


def test_what_the_advice_says_goes_through(recipe, flowers, tmp_path, capsys):
    data = {"data.labeled": str(flowers), "data.val": str(flowers), "student.num_classes": 2}
    file = recipe(finetune=human(**data), fix=human(resolutions=[32]))
    assert main(["recipe", file]) == 0, capsys.readouterr().err
    import timm

    student = timm.create_model(f"local-dir:{tmp_path / 'out/fix/student'}", pretrained=True)
    assert student.num_classes == 2 and student.pretrained_cfg["label_names"] == FLOWERS


@pytest.mark.parametrize("fits", [True, False])
def test_a_plan_of_a_recipe_looks_at_its_later_stages(recipe, flowers, capsys, fits):
    file = recipe(finetune={"steps": 2, "targets": "human"})
    words = [] if fits else [f"--finetune.data.labeled={flowers}"]
    given = ["plan", file, "--seconds=0.01", "--images", "9", "--steps=3", *words]
    code, said = main(given), capsys.readouterr()
    assert code == 1 and "the teacher is near chance" in said.out  # it has learned nothing
    assert ("finetune: data.labeled names 2 classes" in said.out) != fits


@pytest.mark.parametrize("case", ["teacher", "same", "fix only", "other images"])
def test_stages_that_fit_are_not_accused(recipe, flowers, colours, tmp_path, case):
    """A teacher's words on images of other classes need no labels."""
    from ssld.common.settings_file import read_settings
    from ssld.recipe.classes import check_classes
    from ssld.recipe.recipe import open_recipe

    named = manifest(colours, tmp_path / "m.parquet", ["red", "green", "blue"])
    stages = {
        "teacher": {"finetune": {"data.labeled": str(flowers), "data.val": str(flowers)}},
        "same": {"finetune": human(), "fix": {}},
        "fix only": {"fix": {}},
        "other images": {"finetune": human(**{"data.labeled": named})},
    }[case]
    file = recipe(**stages)
    recipe = open_recipe(file, read_settings(Path(file)), None, [])
    assert not list(check_classes(recipe.configs()))


def test_a_stage_refuses_a_teacher_of_another_order(colours, teacher_file, tmp_path):
    from ssld.data.labels import ClassTable
    from ssld.distill.config import DistillConfig, FinetuneConfig
    from ssld.distill.setup import open_data, open_student

    save_export(tmp_path / "start", ["blue", "green", "red"])
    shared = {"out": str(tmp_path / "o"), "steps": 1, "batch_size": 8}
    shared |= {"data.labeled": str(colours / "train"), "teacher.arch": "x", "data.holdout": 0}
    order = ["red", "green", "blue"]
    for kind, more in ((DistillConfig, {}), (FinetuneConfig, {"run": "r"})):
        config = parsed(kind, {**shared, **more}, tmp_path / "start")
        data = open_data(config)
        one, other = (ClassTable("the teacher", 3, names) for names in (order, order[::-1]))
        if kind is FinetuneConfig:
            with pytest.raises(InputError, match="classes in another order: class 0 is 'blue'"):
                open_student(data, config.student, one, keep_classes=True)
            open_student(data, config.student, other, keep_classes=True)
        else:
            student = open_student(data, config.student, one)
            assert student.label_names == order  # learned anew


def save_export(folder: Path, names: list[str]) -> None:
    from ssld.engine.checkpoint import export
    from ssld.models.opening import open_network

    network = open_network("student", arch="test_resnet", num_classes=3, input_size=32)
    network.label_names = names
    export(network, folder, 0)


def parsed(kind: Any, settings: dict[str, Any], start: Path) -> Any:
    from ssld.cli.parse import parse

    words = [f"--{key}={value}" for key, value in settings.items()]
    return parse("x", kind, [*words, f"--student.checkpoint={start}"])


def test_evaluate_says_what_helps(flowers, tmp_path, capsys):
    save_export(tmp_path / "model", ["blue", "green", "red"])
    words = ["evaluate", f"--model={tmp_path / 'model'}", f"--data={flowers}", "--workers=0"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "has the class 'daisy', which is not among the 3 of the model" in error
    assert "`ssld transfer` trains a new classifier" in error and error.count("\n") == 1
