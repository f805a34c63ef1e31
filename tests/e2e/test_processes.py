"""Two processes give the training that one gives, under every launcher."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sabotage
import torch
from case import MEND
from safetensors.torch import load_file

from ssld.__main__ import main

STEPS = 10
ACCELERATE = [
    sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--mixed_precision", "no",
    "--num_processes", "2", "--num_machines", "1", "--dynamo_backend", "no", "-m", "ssld.distill",
]  # fmt: skip
TORCHRUN = ["--nproc_per_node", "2", "--standalone", "-m", "ssld.distill"]
Launch = Callable[[list[str], Path], None]
"""With the words of a distillation, and a file for what is said."""


def words(colours: Path, teacher_file: Path, out: Path, student: str) -> list[str]:
    settings = {
        "out": out,
        "steps": STEPS,
        "batch_size": 16,
        "log_every_steps": 1,
        "student.arch": student,
        "augment.size": 32,
        "teacher.checkpoint": teacher_file,
        "teacher.verify": "false",
        "data.unlabeled": colours / "unlabeled",
        "data.val": colours / "val",
        "data.workers": 0,
        "evaluate_every_epochs": 100,
        "probe.every_epochs": 0,
        "schedule.lr": 0.1,
        "trackers": "[]",
    }
    return [f"--{key}={value}" for key, value in settings.items()]


def lines(out: Path, kind: str) -> list[dict]:
    found = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["kind"] == kind]


def accelerate(given: list[str], said: Path) -> None:
    """All of it as a user starts it: torchrun, too, to which we hand over from accelerate."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*ACCELERATE, *given]
    with said.open("wb") as file:
        done = subprocess.run(command, stdout=file, stderr=file, env=environment, timeout=300)
    assert done.returncode == 0, said.read_text()[-3000:]


class Forked:
    """In place of `subprocess.Popen`: a process of torchrun from the fork server, which need not
    import everything again."""

    def __init__(self, args: tuple[str, ...], env: dict[str, str], **_: Any) -> None:
        assert args[:4] == (sys.executable, "-u", "-m", "ssld.distill")
        said = Path(f"{env['SAID']}.{env['RANK']}")
        self.process = sabotage.Started(["distill", *args[4:]], said, **env).process
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float) -> None:
        self.process.join(timeout)


@pytest.fixture
def torchrun(monkeypatch) -> Launch:
    """The launcher, in this process."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    def launch(given: list[str], said: Path) -> None:
        monkeypatch.setattr(subprocess_handler, "Popen", Forked)
        monkeypatch.setenv("SAID", str(said))
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        caught = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT]  # and not let go
        before = {number: signal.getsignal(number) for number in caught}
        try:
            run.main([*TORCHRUN, *given])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    return launch


def compared(launch: Launch, student, colours, teacher_file, folder) -> tuple[list, list]:
    """A run of one process, of this one, and one of two: their folders and losses."""
    outs = [folder / "one", folder / "two"]
    one, two = (words(colours, teacher_file, out, student) for out in outs)
    launch(two, folder / "said")
    assert main(["distill", *one]) == 0
    assert json.loads((outs[1] / "run.json").read_text())["processes"] == 2
    losses = [[line["loss"] for line in lines(out, "train")] for out in outs]
    assert len(losses[0]) == len(losses[1]) == STEPS
    return outs, losses


def test_two_processes_agree_with_one(colours, teacher_file, tmp_path):
    outs, (one, two) = compared(accelerate, "test_convnext", colours, teacher_file, tmp_path)
    assert two == pytest.approx(one, rel=1e-3)
    a, b = (load_file(out / "student/model.safetensors") for out in outs)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)
    (one_eval,), (two_eval,) = (lines(out, "eval") for out in outs)
    assert two_eval["divergence"] == pytest.approx(one_eval["divergence"], rel=1e-3)


def test_batch_norm_sees_all_processes(torchrun, colours, teacher_file, tmp_path):
    outs, (one, two) = compared(torchrun, "test_resnet", colours, teacher_file, tmp_path)
    # Batch norm amplifies rounding step by step (1e-7 at first): tight early, loose later.
    assert two[:5] == pytest.approx(one[:5], rel=1e-3)
    assert two == pytest.approx(one, abs=2e-3)
    a, b = (load_file(out / "student/model.safetensors") for out in outs)
    for name in a:  # running statistics included
        torch.testing.assert_close(a[name], b[name], rtol=0.05, atol=0.05)


def test_a_batch_that_does_not_divide_is_refused(colours, teacher_file, tmp_path):
    command = ["distill", "--out", str(tmp_path / "o"), "--steps", "1"]
    command += ["--batch_size", "1", "--student.arch", "test_resnet", "--data.workers", "0"]
    command += ["--teacher.checkpoint", str(teacher_file)]
    command += ["--data.unlabeled", str(colours / "unlabeled")]
    started = sabotage.ranks(command, tmp_path / "said")
    codes = [process.end() for process in started]
    assert codes[0] == MEND and codes[1] != 0
    assert "batch_size is 1: give a multiple of the 2 processes" in started[0].words
    assert not (tmp_path / "o").exists()


def test_a_launcher_that_disagrees_is_refused(colours, teacher_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    command = ["distill", "--out", str(tmp_path / "o"), "--steps", "1"]
    command += ["--student.arch", "test_resnet", "--teacher.checkpoint", str(teacher_file)]
    command += ["--data.unlabeled", str(colours / "unlabeled")]
    assert main(command) == 2
    assert "launcher says mixed precision bf16" in capsys.readouterr().err
