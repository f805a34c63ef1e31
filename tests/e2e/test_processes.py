"""Two processes give the training that one gives, under every launcher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

STEPS = 50
ACCELERATE = ["accelerate.commands.launch", "--cpu", "--mixed_precision", "no"]
LAUNCHERS = {
    "one": [sys.executable, "-m", "ssld.distill"],
    "accelerate": [
        sys.executable, "-m", *ACCELERATE, "--num_processes", "2", "--num_machines", "1",
        "--dynamo_backend", "no", "-m", "ssld.distill",
    ],
    "torchrun": [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
        "--standalone", "-m", "ssld.distill",
    ],
}  # fmt: skip


def launch(launcher: str, colours: Path, teacher_file: Path, out: Path, steps: int) -> None:
    settings = {
        "out": out,
        "steps": steps,
        "batch_size": 16,
        "log_every_steps": 1,
        "student.arch": "test_resnet",
        "augment.size": 64,
        "teacher.checkpoint": teacher_file,
        "teacher.verify": "false",
        "data.unlabeled": colours / "unlabeled",
        "data.val": colours / "val",
        "data.workers": 0,
        "evaluate_every_epochs": 100,
        "schedule.lr": 0.1,
        "trackers": "[]",
    }
    words = [f"--{key}={value}" for key, value in settings.items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*LAUNCHERS[launcher], *words], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


def lines(out: Path, kind: str) -> list[dict]:
    found = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["kind"] == kind]


@pytest.fixture(scope="module")
def one_process(colours, teacher_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "run"
    launch("one", colours, teacher_file, out, STEPS)
    return out


@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_two_processes_agree_with_one(colours, teacher_file, one_process, tmp_path, launcher):
    out = tmp_path / "run"
    launch(launcher, colours, teacher_file, out, STEPS)
    one, two = ([line["loss"] for line in lines(o, "train")] for o in (one_process, out))
    assert len(one) == STEPS and two == pytest.approx(one, rel=1e-3)
    a, b = (load_file(o / "student/model.safetensors") for o in (one_process, out))
    for name in a:  # batch norm's running statistics included
        torch.testing.assert_close(a[name], b[name], rtol=1e-2, atol=1e-3)
    (one_eval,), (two_eval,) = (lines(o, "eval") for o in (one_process, out))
    assert two_eval["divergence"] == pytest.approx(one_eval["divergence"], rel=1e-2)
    assert json.loads((out / "run.json").read_text())["processes"] == 2


def test_a_batch_that_does_not_divide_is_refused(colours, teacher_file, tmp_path):
    command = [*LAUNCHERS["torchrun"], "--out", str(tmp_path / "o"), "--steps", "1"]
    command += ["--batch_size", "1", "--student.arch", "test_resnet", "--data.workers", "0"]
    command += ["--teacher.checkpoint", str(teacher_file)]
    command += ["--data.unlabeled", str(colours / "unlabeled")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "batch_size is 1: give a multiple of the 2 processes" in done.stderr
    assert not (tmp_path / "o").exists()


def test_a_launcher_that_disagrees_is_refused(colours, teacher_file, tmp_path):
    environment = {**os.environ, "ACCELERATE_MIXED_PRECISION": "bf16"}
    command = [*LAUNCHERS["one"], "--out", str(tmp_path / "o"), "--steps", "1"]
    command += ["--student.arch", "test_resnet", "--teacher.checkpoint", str(teacher_file)]
    command += ["--data.unlabeled", str(colours / "unlabeled")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 2 and "launcher says mixed precision bf16" in done.stderr
