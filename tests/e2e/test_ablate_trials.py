"""`ssld ablate` with real recipes on real images."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet as pq
import sabotage
import yaml

from ssld.__main__ import main
from ssld.ablate import pool


class Forked:
    """In place of `subprocess.Popen`: `ssld recipe` from the fork server, in a fraction of it.
    How processes are really started is tested in `tests/ablate/test_trials.py`."""

    def __init__(self, words: list[str], *, stdout: IO[bytes], **_: Any) -> None:
        assert words[: words.index("recipe")][-3:] == [sys.executable, "-m", "ssld"]
        self.started = sabotage.Started(words[words.index("recipe") :], Path(stdout.name))

    def poll(self) -> int | None:
        return self.returncode

    @property
    def returncode(self) -> int | None:
        return self.started.process.exitcode


def test_trials_are_recipes(colours, teacher_file, tmp_path, monkeypatch, capsys):
    out, file = tmp_path / "out", tmp_path / "F.yaml"
    first = {"steps": 4, "batch_size": 8, "log_every_steps": 1, "augment.size": 32}
    first |= {"student.arch": "test_resnet", "teacher.checkpoint": str(teacher_file)}
    first |= {"teacher.verify": False, "data.workers": 0, "trackers": []}
    first |= {"data.labeled": str(colours / "train"), "data.val": str(colours / "val")}
    grid = {"data.unlabeled": [[], [str(colours / "unlabeled")]], "seed": [1]}
    tree = {"out": str(out), "distill": first, "grid": grid}
    file.write_text(yaml.safe_dump({**tree, "fix": {"steps": 2, "resolutions": [40]}}))
    monkeypatch.setattr(pool.subprocess, "Popen", Forked)
    assert main(["ablate", str(file)]) == 0, capsys.readouterr()
    rows = pq.read_table(out / "results.parquet").to_pylist()
    assert [row["stage"] for row in rows] == ["distill", "fix"] * 2
    assert [row["images"] for row in rows] == [36, 36, 96, 36]
    assert [row["steps"] for row in rows] == [4, 2] * 2
    assert rows[0]["data.unlabeled"] == "[]" and {row["seed"] for row in rows} == {1}
    for row in rows:
        run = json.loads((out / row["run"] / "run.json").read_text())
        best = run["resolution"]["metrics"] if row["stage"] == "fix" else run["exported"]
        value = best["agreement1"] if row["stage"] == "fix" else best["value"]
        assert row["status"] == "done" and row["agreement1"] == value
        assert row["teacher_top1"] is not None and row["top1"] is not None
        assert row["train_seconds"] > 0 and row["images_per_second"] > 0
    page = (out / "report.html").read_text()
    assert page.count("/report.html") == 2
    monkeypatch.delattr(pool.subprocess, "Popen")  # nothing is started
    assert main(["ablate", str(file)]) == 0
    assert pq.read_table(out / "results.parquet").to_pylist() == rows
