"""What is wrong with settings is said before torch is imported and before anything is made."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from ssld.common.errors import InputError
from ssld.common.paths import check_inputs
from ssld.data.config import DataConfig
from ssld.distill.config import DistillConfig, FinetuneConfig
from ssld.models.config import StudentConfig, TeacherConfig

RUN = ["--out=o", "--steps=1", "--student.arch=resnet18", "--data.labeled=images"]
BAD = {
    "teacher.checkpoint is 'local-dir:x', but takes a file or a folder: give this as teacher": [
        ["distill", *RUN, "--teacher.checkpoint=local-dir:x"],
        ["plan", *RUN, "--teacher.checkpoint=local-dir:x"],
    ],
    "teacher.checkpoint: t.safetensors: no such file": [
        ["distill", *RUN, "--teacher.checkpoint=t.safetensors"],
        ["bench", *RUN, "--teacher.checkpoint=t.safetensors"],
        ["recipe", "r.yaml"],
    ],
    "data.val: nowhere: no such file": [
        ["supervised", *RUN, "--data.val=nowhere"],
        ["detection", "--out=o", "--steps=1", "--backbone.name=resnet18", "--data.val=nowhere",
         "--data.train=images"],
        ["segmentation", "--out=o", "--steps=1", "--backbone.name=resnet18", "--data.val=nowhere",
         "--data.train=images"],
    ],
    "teacher.arch is missing": [["curate", "--gallery=images", "--protected=images", "--out=o"]],
    "data: empty is an empty folder": [["evaluate", "--model=resnet18", "--data=empty"]],
    "name a file in a folder that exists": [
        ["evaluate", "--model=resnet18", "--data=images", "--out=nowhere/a.json"],
        ["plan", *RUN, "--teacher.arch=resnet18", "--json=images"],
        ["bench", *RUN, "--teacher.arch=resnet18", "--json=nowhere/a.json"],
    ],
}  # fmt: skip
CODE = """
import json, sys
from ssld.__main__ import main
for words in json.loads(sys.argv[1]):
    assert main(words) == 2, words
assert not {"torch", "timm", "matplotlib"} & set(sys.modules), "heavy import"
"""


def test_refused_before_anything_heavy_is_imported(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "images" / "a.jpg").touch()
    recipe = "out: x\ndistill: {steps: 1, student: {arch: a}, data: {labeled: images},"
    (tmp_path / "r.yaml").write_text(recipe + " teacher: {checkpoint: t.safetensors}}\n")
    before = sorted(os.listdir(tmp_path))
    commands = [words for found in BAD.values() for words in found]
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(commands)],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    expected = [said for said, found in BAD.items() for _ in found]
    assert len(lines) == len(expected)
    for line, said in zip(lines, expected, strict=True):
        assert said in line
    assert sorted(os.listdir(tmp_path)) == before


def config(kind=DistillConfig, **settings):
    given = {"out": "o", "steps": 1, "student": StudentConfig(arch="s"), **settings}
    return kind(**given, teacher=TeacherConfig(arch="t"))


@pytest.mark.parametrize(
    "path",
    [
        "s3://bucket/x",
        "x-{000..127}.tar",
        "*.tar",
        "train-?.parquet",
        "x-[0-3].tar",
        "~/home",
        "odd::name",
        "here",
        "here::train",
        "a.tar",
    ],
)
def test_what_is_there_or_elsewhere_is_not_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here" / "train").mkdir(parents=True)
    for name in ("a.tar", "home", "odd::name"):
        (tmp_path / name).touch()
    check_inputs(config(data=DataConfig(labeled=path)))


def test_the_student_of_an_earlier_stage_may_be_still_to_come():
    student = StudentConfig(checkpoint="runs/to-come", num_classes=3)
    check_inputs(config(FinetuneConfig, run="runs/to-come", student=student,
                        data=DataConfig(labeled=".")))  # fmt: skip
    with pytest.raises(InputError, match=r"student.checkpoint: runs/to-come"):
        check_inputs(config(student=student, data=DataConfig(labeled=".")))
