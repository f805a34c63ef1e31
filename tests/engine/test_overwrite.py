"""`--overwrite` removes a run of ssld and nothing else, and all of it or nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pictures
import pytest
import short_runs
from short_runs import tree

from ssld.__main__ import main
from ssld.engine import overwrite
from ssld.engine.overwrite import OLD, foreign


@pytest.fixture(scope="module", autouse=True)
def quick_pictures():
    with pictures.left_out():
        yield


class Command:
    """A short distillation into `out`."""

    def __init__(self, colours: Path, teacher_file: Path, out: Path) -> None:
        self.out = out
        every = {"checkpoint.every_steps": 1, "probe.every_epochs": None, "trackers": None}
        self.settings = short_runs.settings(colours, teacher_file, out, **every)

    def __call__(self, *words: str, command: str = "distill", **changes: object) -> int:
        settings = {**self.settings, **changes}
        return main([command, *(f"--{k}={v}" for k, v in settings.items()), *words])


@pytest.fixture(scope="module")
def finished(colours, teacher_file, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    assert Command(colours, teacher_file, out)() == 0
    return out


@pytest.fixture
def command(colours, teacher_file, finished, tmp_path) -> Command:
    """Of a run that is finished."""
    shutil.copytree(finished, tmp_path / "run", symlinks=True)
    return Command(colours, teacher_file, tmp_path / "run")


def refused(command: Command, capsys, *words: str, **changes: object) -> str:
    """What is said of an --overwrite that touches nothing."""
    before = tree(command.out)
    assert command("--overwrite", *words, **changes) == 2
    assert tree(command.out) == before
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("error: ")
    return said[0]


def test_a_run_gives_way_to_a_new_one(command):
    (command.out / ".DS_Store").write_text("of a file manager")
    (command.out / "student/.DS_Store").write_text("of a file manager")
    assert command("--overwrite", seed=1) == 0
    assert not foreign(command.out) and not (command.out / OLD).exists()
    assert (command.out / ".DS_Store").is_file()
    settings = (command.out / "config.yaml").read_text()
    assert "seed: 1" in settings and (command.out / "student/model.safetensors").is_file()
    lines = (command.out / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert set(steps) == {1, 2}


@pytest.mark.parametrize(
    "name",
    [
        "thesis.tex",
        "images/red/1.png",
        "student/README.md",
        "checkpoints/notes.txt",
        "checkpoints/step-00000002/evaluation.json",
        "checkpoints/step-00000002 the good one/student.safetensors",
        "tensorboard/mine/figure.pdf",
        "report.html/page",
        ".git/HEAD",
        "Student/model.safetensors",
        "über.txt",
    ],
)
def test_what_ssld_has_not_written_is_named_and_kept(command, capsys, name):
    path = command.out / name
    if path.parent.name == "report.html":
        path.parent.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("precious")
    said = refused(command, capsys)
    assert "move that away" in said and name.split("/")[-1 if "student/R" in name else 0] in said


def test_many_foreign_entries_are_counted(command, capsys):
    for i in range(9):
        (command.out / f"{i}.png").write_text("precious")
    assert "5.png and 3 more" in refused(command, capsys)
    (command.out / "empty").mkdir()
    assert "and 4 more" in refused(command, capsys)


@pytest.mark.parametrize(
    "content",
    ["name: docker\n", "out: x\nseed: 0\nstudent: {arch: resnet18}\n", "[]", "", "{", "\0"],
)
def test_a_config_yaml_does_not_make_a_run(command, capsys, tmp_path, content):
    command.out = tmp_path / "mine"
    command.out.mkdir()
    (command.out / "config.yaml").write_text(content)
    assert "not a run folder" in refused(command, capsys, out=command.out)


def inputs(command: Command, tmp_path: Path, colours: Path) -> dict[str, tuple[dict, str]]:
    """What a run may read from inside of its `out` -> (changed settings, the one to be named)."""
    out = command.out
    shutil.copytree(colours / "unlabeled", out / "images")
    (tmp_path / "images").symlink_to(out / "images")
    (tmp_path / "student").symlink_to(out / "student")
    (tmp_path / "chain").symlink_to("student")
    (tmp_path / "elsewhere").mkdir()
    dotted = f"{tmp_path}/elsewhere/../run/student"
    relative = os.path.relpath(out / "student")
    return {
        "teacher": ({"teacher.checkpoint": out}, "teacher.checkpoint"),
        "teacher's file": ({"teacher.checkpoint": out / "student/model.safetensors"}, "teacher"),
        "link": ({"teacher.checkpoint": tmp_path / "student"}, "teacher.checkpoint"),
        "link to a link": ({"teacher.checkpoint": tmp_path / "chain"}, "teacher.checkpoint"),
        "dots": ({"teacher.checkpoint": dotted}, "teacher.checkpoint"),
        "relative": ({"teacher.checkpoint": relative}, "teacher.checkpoint"),
        "name": ({"teacher.arch": f"local-dir:{out}/student"}, "teacher.arch"),
        "start": ({"student.checkpoint": out}, "student.checkpoint"),
        "sources": ({"data.unlabeled": f"[{colours / 'unlabeled'}, {out / 'images'}]"}, "images"),
        "linked source": ({"data.labeled": tmp_path / "images"}, "data.labeled"),
        "held-out": ({"data.val": out / "images"}, "data.val"),
        "manifest": ({"data.unlabeled": out / "report.html"}, "data.unlabeled"),
        "pattern": ({"data.unlabeled": f"{out}/shards-{{0..3}}.tar"}, "data.unlabeled"),
        "several": ({"teachers": f'[{{"checkpoint": "{out}"}}]'}, "teachers.checkpoint"),
    }


INPUTS = (
    "teacher,teacher's file,link,link to a link,dots,relative,name,start,sources,linked source,"
    "held-out,manifest,pattern,several"
).split(",")


@pytest.mark.parametrize("case", INPUTS)
def test_what_the_new_run_reads_is_not_deleted(command, capsys, tmp_path, colours, case):
    changes, named = inputs(command, tmp_path, colours)[case]
    if case in ("name", "several"):
        del command.settings["teacher.checkpoint"]
    said = refused(command, capsys, **changes)
    assert "reads from inside of it" in said and named in said


def test_the_run_that_a_stage_goes_on_from_is_not_deleted(command, capsys, colours):
    before = tree(command.out)
    words = ["--run", str(command.out), "--out", f"{command.out}/../run", "--overwrite"]
    words += ["--data.labeled", str(colours / "train"), "--data.unlabeled", "[]"]
    assert main(["finetune", *words]) == 2
    assert f"run {command.out}" in capsys.readouterr().err and tree(command.out) == before


def test_downstream_backbones_and_annotations_are_not_deleted(
    command, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").touch()
    (tmp_path / "linked").symlink_to(command.out)
    for words in (
        ["transfer", "--backbone", f"{command.out}/student", "--data.labeled", "x"],
        ["detection", "--backbone", f"local-dir:{tmp_path}/linked/student", "--data.train", "x"],
        ["segmentation", "--backbone", "x", "--data.train", f"{command.out}/report.html::x"],
    ):
        before = tree(command.out)
        rest = ["--data.val", "x", "--steps", "1", "--out", str(command.out), "--overwrite"]
        assert main([*words, *rest]) == 2
        said = capsys.readouterr().err
        assert "reads from inside of it" in said and said.count("\n") == 1
        assert tree(command.out) == before


def test_what_only_looks_as_if_inside_is_none_of_that(command, tmp_path, monkeypatch):
    """A name that begins alike, a link out of the folder's parent, a working folder inside."""
    shutil.copytree(command.out, tmp_path / "run2")
    (tmp_path / "out").symlink_to(tmp_path / "run")
    monkeypatch.chdir(command.out)
    settings = {"data": {"val": ["../run2"]}, "teacher": {"checkpoint": f"{tmp_path}/run2/student"}}
    settings |= {"trackers": ["tensorboard"], "student": {"arch": "test_resnet"}, "out": "."}
    overwrite.refuse(Path("."), settings)
    overwrite.refuse(tmp_path / "out", settings)
    assert overwrite.inputs_inside(tmp_path / "none", settings) == []


def test_links_are_unlinked_and_never_followed(command, tmp_path):
    for name in ("checkpoints", "student/model.safetensors", "report.html"):
        there = tmp_path / "disk" / name
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(command.out / name, there)
        (command.out / name).symlink_to(there)
    kept = tree(tmp_path / "disk")
    assert command("--overwrite") == 0
    assert tree(tmp_path / "disk") == kept
    assert not any((command.out / name).is_symlink() for name in ("checkpoints", "report.html"))


def test_folders_without_rights_are_found_before_anything_is_touched(command, capsys, monkeypatch):
    access, locked = os.access, command.out / "checkpoints/step-00000002"
    monkeypatch.setattr(os, "access", lambda path, mode: path != locked and access(path, mode))
    assert "step-00000002 is not writable" in refused(command, capsys)


def test_resume_takes_back_what_a_killed_overwrite_had_put_aside(command, capsys):
    whole = tree(command.out / "student")
    overwrite._put_aside(command.out)
    assert command() == 2 and "not empty" in capsys.readouterr().err
    assert command("--resume", seed=7) == 2 and "seed was 0" in capsys.readouterr().err
    assert command("--resume") == 0
    assert tree(command.out / "student") == whole and not (command.out / OLD).exists()


def test_resume_deletes_nothing_foreign(command):
    """What a user has put among the files of a run stays, also where those are replaced."""
    mine = [
        "student/README.md",
        "tensorboard/notes.txt",
        "checkpoints/step-00000001/mine.json",
        "checkpoints/step-00000099 before the change/student.safetensors",
        "notes.txt",
        ".student.old/kept.txt",  # of a replacement that was killed
    ]
    for name in mine:
        (command.out / name).parent.mkdir(exist_ok=True)
        (command.out / name).write_text("precious")
    changed = ["--allow_changes", "steps"]
    assert command("--resume", *changed, steps=5) == 0
    mine[-1] = "student/kept.txt"
    assert all((command.out / name).read_text() == "precious" for name in mine)
    assert sorted(x.name for x in (command.out / "checkpoints/step-00000001").iterdir()) == [
        "mine.json"
    ]
    assert (command.out / "checkpoints/step-00000005/student.safetensors").is_file()


def test_all_names_of_every_training_command_are_known():
    """A name that is written and not listed would keep its own command from overwriting."""
    from downstream.ab.records import PROBE
    from downstream.dense.model import FOLDER
    from downstream.dense.report import PICTURES
    from downstream.detection.task import PREDICTIONS
    from ssld.distill.fixres import TABLE
    from ssld.engine.overwrite import _is_ours
    from ssld.engine.per_image import HELD_OUT
    from ssld.recipe.stage_folder import STATE

    names = [PROBE, PREDICTIONS, HELD_OUT, TABLE, STATE, "preflight.json", "preflight.md"]
    names += [f"{PICTURES}/step-00000001.jpg", f"{FOLDER}/model.safetensors"]
    for name in names:
        assert _is_ours(tuple(name.split("/")), folder=False), name


@pytest.fixture
def recipe(command, tmp_path):
    """Does a recipe again, of which `command.out` is the first stage, with another rate."""
    out = tmp_path / "recipe"
    out.mkdir()
    shutil.copytree(command.out, out / "finetune")
    command.out = command.out.rename(out / "distill")

    def run(**changes: object) -> int:
        tree = {k: v for k, v in command.settings.items() if k != "out"} | changes
        tree = {key: str(x) if isinstance(x, Path) else x for key, x in tree.items()}
        tree |= {"teacher.verify": False, "data.labeled": tree["data.val"], "schedule.lr": 0.5}
        file = tmp_path / "F.yaml"
        stages = {"distill": tree, "finetune": {"steps": 1}}
        file.write_text(json.dumps({"out": str(out), **stages}))
        return main(["recipe", str(file), "--overwrite"])

    return run


@pytest.mark.parametrize("name", ["distill/student/notes.txt", "finetune/thesis.tex"])
def test_a_recipe_names_what_is_foreign_in_what_it_would_redo(command, recipe, capsys, name):
    folder = command.out.parent
    (folder / name).write_text("precious")
    before = tree(folder)
    assert recipe() == 2
    said = capsys.readouterr().err
    assert name.partition("/")[2] in said and "move that away" in said and said.count("\n") == 1
    assert tree(folder) == before


def test_a_recipe_does_not_redo_what_it_learns_from(command, recipe, capsys):
    folder = command.out.parent
    before = tree(folder)
    assert recipe(**{"teacher.checkpoint": f"{folder}/../recipe/finetune"}) == 2
    assert "teacher.checkpoint" in capsys.readouterr().err and tree(folder) == before
