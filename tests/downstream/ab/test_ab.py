"""`ssld ab`: its grid, and the whole command on tiny runs."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

import pyarrow.parquet as pq
import pytest
import yaml

from downstream.ab import grid as ab_grid
from downstream.ab.grid import ABConfig
from ssld.__main__ import main
from ssld.ablate import pool
from ssld.common.settings_file import read_settings
from ssld.distill.task import Classification
from ssld.engine.trainer import Trainer

CLOCK = ("seconds", "train_seconds", "images_per_second")


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


class Here:
    """In place of `subprocess.Popen`: the trial runs in this process, before this returns. How
    processes are really started is tested in `tests/ablate/test_trials.py`."""

    def __init__(self, words: list[str], *, stdout: IO[bytes], **_: Any) -> None:
        assert words[: words.index("recipe")][-3:] == [sys.executable, "-m", "ssld"]
        self.returncode = main(words[words.index("recipe") :])

    def poll(self) -> int:
        return self.returncode


def settings(colours: Path) -> dict[str, Any]:
    data = {"labeled": str(colours / "train"), "val": str(colours / "val"), "workers": 0}
    found: dict[str, Any] = {"steps": 4, "batch_size": 8, "log_every_steps": 1, "trackers": []}
    found |= {"augment": {"size": 32}, "schedule": {"lr": 1.0}, "evaluate_every_epochs": 0.4}
    return {**found, "probe": {"every_epochs": 0}, "checkpoint": {"every_steps": 1}, "data": data}


@pytest.fixture
def file(colours, tmp_path, monkeypatch) -> Path:
    """Settings of a tiny transfer run."""
    monkeypatch.setattr(Classification, "write_report", lambda *_: None)  # half of a run's time
    monkeypatch.setattr(pool.subprocess, "Popen", Here)
    monkeypatch.setattr(pool, "POLL_SECONDS", 0)
    found = tmp_path / "F.yaml"
    found.write_text(yaml.safe_dump(settings(colours)))
    return found


def ab(file: Path, out: Path, *more: str, a: str = "test_resnet", b: str = "test_byobnet",
       seeds: int = 2) -> int:  # fmt: skip
    words = ["ab", "--task", "transfer", "--config", str(file), "--backbones", f"random:{a}"]
    return main([*words, f"random:{b}", "--seeds", str(seeds), "--out", str(out), *more])


def timeless(found: Any) -> Any:
    """Without what a clock decides."""
    if isinstance(found, dict):
        return {k: timeless(x) for k, x in found.items() if k not in CLOCK}
    return [timeless(x) for x in found] if isinstance(found, list) else found


def test_the_whole_command_killed_and_gone_on_with(file, tmp_path, monkeypatch, capsys):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    step = Trainer.train_step

    def die(trainer: Trainer, *arguments: Any) -> None:
        if trainer.step == 2 and "tuned" in str(trainer.run.folder.path):
            trainer.run.folder.unlock()  # the kernel frees the locks of the dead
            raise Killed
        step(trainer, *arguments)

    monkeypatch.setattr(Trainer, "train_step", die)
    with pytest.raises(Killed):
        ab(file, killed)
    monkeypatch.setattr(Trainer, "train_step", step)
    assert not (killed / "ab.json").exists()
    capsys.readouterr()
    assert ab(file, killed) == 0
    said = capsys.readouterr().out
    assert "8 trials, 2 of them done before" in said and "resumed from" in said
    assert "## B less A, points" in said and str(killed / "report.html") in said
    found = json.loads((killed / "ab.json").read_text())
    assert len(found["runs"]) == 8 and set(found["differences_b_less_a"]) == {
        "same",
        "tuned",
        "best",
    }
    for name in ("same", "tuned"):
        one = found["differences_b_less_a"][name]
        scores = {(x["backbone"], x["seed"]): x["score"] for x in found["runs"] if x["lr"] == name}
        a, b = found["backbones"].values()
        gaps = [scores[b, seed] - scores[a, seed] for seed in (0, 1)]
        assert one["by_seed"] == gaps and one["images"] == 24
        assert one["over_both"]["low"] <= one["over_seeds"]["low"]
    rows = pq.read_table(killed / "results.parquet").to_pylist()
    assert [row["stage"] for row in rows] == ["transfer"] * 8
    assert [row["top1"] for row in rows] == [run["score"] for run in found["runs"]]
    page = (killed / "report.html").read_text()
    links = [unquote(x) for x in re.findall(r'href="([^"]+)"', page)]
    assert len(links) == 8 and all((killed / x).parent.is_dir() for x in links)
    assert ab(file, whole, seeds=1) == 0
    undisturbed = json.loads((whole / "ab.json").read_text())["runs"]
    gone_on_with = [run for run in found["runs"] if run["seed"] == 0]
    assert len(undisturbed) == 4 and timeless(gone_on_with) == timeless(undisturbed)
    monkeypatch.delattr(pool.subprocess, "Popen")  # nothing is started
    assert ab(file, killed) == 0
    assert ab(file, killed, "--epochs", "1") == 2  # steps are not what they were
    assert "was made with other settings" in capsys.readouterr().err


def test_trials_that_fail_are_left_out(file, tmp_path, capsys, monkeypatch):
    started = Here.__init__

    def fail(self: Here, words: list[str], **more: Any) -> None:
        bad = ["--optimizer.name", "sdg"] if "seed=1" in str(words) else []
        started(self, [*words, *bad], **more)

    monkeypatch.setattr(Here, "__init__", fail)
    out = tmp_path / "out"
    assert ab(file, out) == 1
    said = capsys.readouterr()
    assert "4 of 8 trials failed" in said.err and "One seed has no interval" in said.out
    found = json.loads((out / "ab.json").read_text())
    assert [one["seeds"] for one in found["differences_b_less_a"].values()] == [[0]] * 3


def trials(file: Path, **more: Any) -> dict[str, dict[str, Any]]:
    changes = {"backbones": ["resnet50d", "random:runs/a"], "seeds": 2, "out": "o", **more}
    config = ABConfig(task="transfer", file=str(file), **changes)
    ablation, note = ab_grid.build(config, read_settings(file))
    assert yaml.safe_load(note)["grid"]["seed"] == [0, 1]
    assert ablation.stages == ["transfer"]
    return {trial.name: trial.recipe["transfer"] for trial in ablation.trials}


def test_every_trial_differs_in_what_is_compared_alone(file, colours):
    found = trials(file, overrides=["epochs=2", "data.val=[x]"])
    assert len(found) == 8
    places = []
    for recipe in found.values():
        backbone = recipe.pop("backbone")
        seed = recipe.pop("seed")
        places.append((backbone["name"], backbone["pretrained"], backbone["lr"], seed))
        expected = {k: x for k, x in settings(colours).items() if k != "steps"}
        expected["data"] = {**expected["data"], "val": ["x"]}
        assert recipe == {**expected, "epochs": 2}
    assert places == [
        (*start, lr, seed)
        for start in (("resnet50d", True), ("runs/a", False))
        for lr in ("same", "tuned")
        for seed in (0, 1)
    ]


def test_settings_may_be_in_a_section_and_name_another_backbone(file, colours, tmp_path):
    alone = trials(file)
    more = {"seed": 7, "backbone": {"name": "vit", "lr": "tuned", "args": {"pad_type": "same"}}}
    other = tmp_path / "G.yaml"
    tree = {"out": "runs/x", "transfer": {**settings(colours), **more}}
    other.write_text(yaml.safe_dump(tree))
    found = trials(other)
    for recipe in found.values():
        assert recipe["backbone"].pop("args") == {"pad_type": "same"}
    assert found == alone


def test_words():
    given = ["--task", "transfer", "--backbones", "a b", "random:c", "--config=F.yaml", "--devices"]
    given += ["2", "--data.val", "x", "--compile", "--overwrite", "--schedule.lr=0.1"]
    assert ab_grid.words(given) == [
        "--task=transfer",
        '--backbones=["a b", "random:c"]',
        "--file=F.yaml",
        "--devices=2",
        "--overwrite",
        '--overrides=["data.val=x", "compile=true", "schedule.lr=0.1"]',
    ]


BAD = {
    "one": (["--backbones", "a"], "backbones is a: give two different names"),
    "same": (["--backbones", "a", "a"], "give two different names"),
    "empty": (["--backbones", "a", "random:"], "has 'random:' without a name"),
    "seeds": (["--seeds", "0"], "seeds is 0"),
    "task": (["--task", "classification"], "task is 'classification'"),
    "near": (["--seed", "3"], "unknown setting 'seed'; did you mean 'seeds'?"),
    "grid": (["--backbone.lr", "same"], "is on the grid"),
    "setting": (["--schedule.lt", "1"], "did you mean 'schedule.lr'?"),
    "name": (["--backbone.nam", "x"], "unknown setting 'backbone.nam'"),
    "second": (["--backbones", "random:test_resnet", "test_resnt"], "'test_resnt' is not a timm"),
    "folder": (["--backbones", "random:test_resnet", "runs/none"], "runs/none: no such folder"),
    "word": (["--overwrite", "true", "--", "x"], "'--' is no option"),
    "no file": (["--config", "none.yaml"], "no such file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_words_get_one_sentence_and_nothing_is_written(file, tmp_path, capsys, case):
    more, said = BAD[case]
    assert ab(file, tmp_path / "out", *more) == 2
    found = capsys.readouterr()
    assert said in found.err and found.err.startswith("error: ") and found.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"detection": {}}, "has a section 'detection': give settings of transfer only"),
        ({"grid": {"seed": [1]}}, "has a section 'grid'"),
        ({"backbone": {"checkpoint": "x"}}, "backbone.checkpoint would be the same for A and B"),
    ],
)
def test_bad_files(file, colours, tmp_path, capsys, changes, said):
    file.write_text(yaml.safe_dump({**settings(colours), **changes}))
    assert ab(file, tmp_path / "out") == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_without_settings_the_option_is_named(capsys):
    assert main(["ab", "--task", "detection", "--backbones", "a", "b"]) == 2
    assert "give --config F.yaml" in capsys.readouterr().err
