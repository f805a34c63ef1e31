"""`ssld.distill(...)` and its like, as a script and a notebook call them."""

from __future__ import annotations

import functools
import inspect
import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pictures
import pytest
import sabotage
from scenes import boxes, make_scenes

import ssld
from ssld.common.errors import InputError, Interrupted

TINY = {"batch_size": 8, "trackers": [], "probe": {"every_epochs": 0}, "precision": "fp32"}


@pytest.fixture(scope="module", autouse=True)
def quick_pictures() -> Iterator[None]:
    with pictures.left_out():
        yield


def test_nothing_is_imported_before_a_call():
    code = "import ssld, sys; assert callable(ssld.distill) and callable(ssld.curate); "
    code += "assert all(callable(getattr(ssld, name)) for name in ssld.__all__); "
    code += "assert not {'torch', 'timm', 'numpy'} & set(sys.modules); print(ssld.distill.__doc__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "frozen teacher" in done.stdout, done.stderr


def test_the_package_below_is_there_all_the_same():
    from ssld.distill.config import DistillConfig
    from ssld.distill.divergence import divergence

    assert callable(ssld.distill) and callable(divergence) and DistillConfig.__name__
    with pytest.raises(AttributeError, match="no attribute 'destill'"):
        ssld.destill  # noqa: B018  # type: ignore[attr-defined]


def test_two_runs_in_one_process(colours, teacher_file, tmp_path):
    data = {"unlabeled": colours / "unlabeled", "val": [colours / "val"], "workers": 0}
    teacher = {"checkpoint": teacher_file, "verify": False}
    run = ssld.distill(
        out=tmp_path / "a", teacher=teacher, student="test_resnet", data=data, steps=2, **TINY
    )
    assert run.folder == tmp_path / "a" and run.metrics["step"] == 2
    assert 0 <= run.metrics["agreement1"] <= 1
    assert [x["step"] for x in run.history if x["kind"] == "eval"][-1] == 2
    assert run.student.num_classes == 3 and not run.student.training  # type: ignore[union-attr]
    bf16 = {**TINY, "precision": "bf16"}
    again = ssld.supervised(
        out=tmp_path / "b", student=tmp_path / "a", steps=1, **bf16,
        data={"labeled": str(colours / "train"), "val": str(colours / "val"), "workers": 0},
    )  # fmt: skip
    assert "top1" in again.metrics
    result = ssld.evaluate(model=again.folder, data=colours / "val", workers=0)
    assert result["images"] == 24 and result["top1_low"] <= result["top1"] <= result["top1_high"]


def test_several_teachers_and_plain_sources(colours, teacher_file, tmp_path):
    run = ssld.distill(
        out=tmp_path / "a", teacher=[teacher_file, teacher_file], student="test_resnet",
        data=[colours / "unlabeled"], steps=1, **TINY,
    )  # fmt: skip
    config = (run.folder / "config.yaml").read_text()
    assert config.count("teacher.safetensors") == 2 and "unlabeled:\n  - " in config


def test_a_curation(colours, teacher_file, tmp_path):
    done = ssld.curate(
        out=tmp_path / "c", gallery=colours / "unlabeled", protected=colours / "val",
        teacher=teacher_file, workers=0, select={"k": 3},
    )  # fmt: skip
    assert done.selected.is_file() and json.loads((done.folder / "manifest.json").read_text())
    assert done.metrics["versions"]


def test_workers_of_a_curation_do_not_run_the_script_again(colours, teacher_file, tmp_path):
    """Of one without `if __name__ == "__main__":`, as most are."""
    script = tmp_path / "script.py"
    script.write_text(
        "import ssld\nprint('begins')\n"
        f"ssld.curate(out={str(tmp_path / 'c')!r}, gallery={str(colours / 'val/blue')!r},\n"
        f"            protected={str(colours / 'val/red')!r}, workers=1, select={{'k': 3}},\n"
        f"            teacher={str(teacher_file)!r})\n"
    )
    run = functools.partial(runpy.run_path, str(script), None, "__main__")
    _, said = sabotage.run(["--help"], tmp_path / "said.txt", [run])
    assert said.count("begins") == 1
    assert (tmp_path / "c/selected.parquet").is_file(), said


def test_a_detector_and_what_it_finds(tmp_path):
    scenes = make_scenes(tmp_path / "scenes", train=2, val=2)
    run = ssld.detection(
        out=tmp_path / "run", backbone={"name": "test_resnet", "pretrained": False},
        data={"train": boxes(scenes, "train"), "val": boxes(scenes, "val"), "workers": 0},
        steps=1, batch_size=2, trackers=[], detector={"name": "ttfnet"},
        augment={"resize": "square", "sizes": [64], "test_size": 64, "longest": None},
    )  # fmt: skip
    assert run.metrics["step"] == 1 and 0 <= run.metrics["ap"] <= 1
    found = list(ssld.predict(run=run.folder, images=scenes / "images/val", score=0))
    assert [x.line["image"] for x in found] == ["val0.png", "val1.png"]
    assert found[0].drawn.shape[2] == 3 and len(found[0].line["boxes"][0]["box"]) == 4
    with pytest.raises(InputError, match="nothing is written here"):
        ssld.predict(run=run.folder, images=scenes / "images/val", out=tmp_path / "drawn")


def test_sentences_have_pythons_words(colours, tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="give resume=True to go on, overwrite=True to start") as e:
        ssld.distill(
            out=tmp_path, teacher="test_resnet", student="test_resnet", steps=1,
            data=colours / "unlabeled",
        )  # fmt: skip
    assert e.value._render_traceback_() == [f"InputError: {e.value}"]
    assert Interrupted("SIGINT")._render_traceback_() == ["Interrupted: SIGINT"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stpes": 3}, r"ssld.distill\(...\): unknown setting 'stpes'; did you mean 'steps'"),
        ({"steps": 0}, "steps is 0: give a number above 0"),
        ({"schedule": {"lr": -1.0}}, "schedule.lr is -1.0: give a number above 0"),
        ({"teacher": None}, "teacher is NoneType: give a timm name"),
        ({"teacher": ["test_resnet", 3]}, "teacher is int: give a timm name"),
        ({"student": 18}, "student is int: give a timm name"),
    ],
)
def test_bad_input_is_a_sentence(tmp_path, settings, message):
    given = {"out": tmp_path / "a", "teacher": "test_resnet", "student": "test_resnet"}
    with pytest.raises(InputError, match=message):
        ssld.distill(**{**given, **settings}, data=tmp_path)
    assert not Path(tmp_path / "a").exists()


def test_a_notebook_shows_the_function():
    assert list(inspect.signature(ssld.evaluate).parameters) == ["model", "data", "settings"]
    with pytest.raises(TypeError, match=r"evaluate\(\) takes 0 positional arguments"):
        ssld.evaluate("runs/mine", "photos")  # type: ignore[call-arg]
