"""`students`: whose settings are whose, and what is refused in one sentence."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ssld.cli.run import main
from ssld.common.errors import InputError
from ssld.data.config import DataConfig
from ssld.distill import many
from ssld.distill.config import BuildLabelsConfig, DistillConfig, FinetuneConfig
from ssld.distill.students import check, students_of
from ssld.models.config import StudentConfig, TeacherConfig
from ssld.plan.config import PlanConfig

GIVEN: dict[str, Any] = {
    "out": "runs/many",
    "steps": 1,
    "student": StudentConfig(args={"drop_rate": 0.1}),
    "teacher": TeacherConfig(arch="test_vit"),
    "data": DataConfig(unlabeled=["images"]),
}


def config(*students: dict[str, Any], kind: Any = DistillConfig, **changes: Any) -> Any:
    return kind(**{**GIVEN, "students": list(students), **changes})


def test_a_students_settings_are_those_of_all_and_its_own():
    one, two = students_of(
        config(
            {"name": "r18", "student": {"arch": "resnet18"}, "schedule": {"lr": 0.2}},
            {"name": "r50.d", "student": {"arch": "resnet50d", "args": {"drop_path_rate": 0.2}},
             "loss": {"weight": 0}, "features": {"weight": 1}},
            resume=True, allow_changes=["schedule"],
        )
    ).values()  # fmt: skip
    assert (one.out, two.out) == ("runs/many/r18", "runs/many/r50.d")
    assert one.student.args == {"drop_rate": 0.1} and one.schedule.lr == 0.2
    assert two.student.args == {"drop_rate": 0.1, "drop_path_rate": 0.2} and two.schedule.lr == 0.1
    assert two.features_alone and not one.features_alone
    assert one.resume and one.allow_changes == ["schedule"] and not one.students


R18 = {"name": "a", "student": {"arch": "resnet18"}}


@pytest.mark.parametrize(
    ("student", "sentence"),
    [
        ({}, "the name of number 2 is 'None': give each student one of letters, digits"),
        ({"name": "../a"}, r"the name of number 2 is '\.\./a'"),
        ({"name": "A"}, "the name 'A' is there twice"),
        ({"name": "b", "seed": 1}, "students, b: seed is of all students, who see the same batche"),
        ({"name": "b", "loss": {"temperature": 2}}, "b: loss.temperature is of all students"),
        (
            {"name": "b", "optimiser": {}},
            "b: unknown setting 'optimiser'; did you mean 'optimizer'",
        ),
        ({"name": "b", "zzz": 1}, "b: unknown setting 'zzz'; give name, student, optimizer"),
        ({"name": "b", "ema": {"decoy": 0.9}}, "b: unknown setting 'ema.decoy'; did you mean"),
        ({"name": "b", "ema": {"decay": 2}}, "b: ema.decay is 2.*: give 0 <= share < 1"),
        ({"name": "b"}, "students, b: student.arch is missing"),
        ({"name": "b", "student": "resnet18"}, "b: student is 'resnet18': give `name: value` lin"),
        ({**R18, "name": "b", "loss": {"weight": 0}}, "b: loss.weight and features.weight are bo"),
    ],
)
def test_what_is_refused_of_a_student(student, sentence):
    with pytest.raises(InputError, match=sentence):
        students_of(config(R18, student))


@pytest.mark.parametrize(
    ("kind", "changes", "instead"),
    [
        (
            BuildLabelsConfig,
            {"student": StudentConfig(arch="resnet18")},
            "labels are of no student",
        ),
        (FinetuneConfig, {"run": "run", "data": DataConfig(labeled=["x"])}, "goes on from one run"),
        (PlanConfig, {}, "measure each alone"),
    ],
)
def test_commands_of_one_student_say_so(kind, changes, instead):
    with pytest.raises(
        ValueError, match=f"only `ssld distill` trains several at once; .*{instead}"
    ):
        config(R18, kind=kind, **changes)


def test_a_fresh_share_and_recipes_are_of_one_student(tmp_path, capsys):
    with pytest.raises(ValueError, match="each of the `students` would ask the teacher for itself"):
        config(R18, labels="labels", fresh_share=0.1)
    recipe = tmp_path / "recipe.yaml"
    students = "students: [{name: a, student: {arch: resnet18}}]"
    recipe.write_text(
        "out: runs\n"
        f"distill: {{steps: 1, teacher: {{arch: x}}, data: {{unlabeled: [y]}}, {students}}}\n"
    )
    assert main(["recipe", str(recipe)]) == 2
    assert "distill: a recipe is of one student; give `student`" in capsys.readouterr().err


def test_out_is_a_folder_of_runs_and_not_one(tmp_path):
    (tmp_path / "config.yaml").write_text("out: x")
    with pytest.raises(InputError, match="is the folder of one run: with `students` each run has"):
        check(config(R18, out=str(tmp_path)))
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "a").mkdir()
    (tmp_path / "a/note.txt").write_text("mine")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_text("")
    data = DataConfig(unlabeled=[str(tmp_path / "images")])
    with pytest.raises(InputError, match=f"out {tmp_path}/a is not empty"):
        check(config(R18, out=str(tmp_path), data=data))
    check(config({**R18, "name": "b"}, out=str(tmp_path), data=data))


def test_networks_of_different_sizes_want_a_common_one(monkeypatch):
    sizes = iter([224, 256])
    monkeypatch.setattr(many, "open_accelerator", lambda _: None)
    monkeypatch.setattr(many, "describe", lambda *_: {})
    monkeypatch.setattr(many, "replace", lambda *_, **__: None)
    monkeypatch.setattr(many, "open_student", lambda *_: SimpleNamespace(input_size=next(sizes)))
    data: Any = SimpleNamespace(accelerator=SimpleNamespace(print=lambda _: None))
    students = students_of(config(R18, {**R18, "name": "b"}))
    with pytest.raises(InputError, match=r"differ \(a 224 px, b 256 px\): set augment.size"):
        many.open_members(data, students, lambda _: None)  # type: ignore[arg-type]
