"""`patience`: a run that gets no better ends, and ends alike when it was killed."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path

import pytest
import sabotage
import short_runs

from ssld.cli.run import main
from ssld.engine.progress import depends_on_the_clock
from ssld.engine.run_folder import read_lines


@pytest.fixture
def words(colours, teacher_file):
    def make(out: Path, **changes: object) -> list[str]:
        every = {"steps": 12, "evaluate_every_epochs": 0.01, "checkpoint.every_steps": 4}
        return ["distill", *short_runs.words(colours, teacher_file, out, **{**every, **changes})]

    return make


def lines(run: Path) -> list[dict]:
    found = read_lines(run / "metrics.jsonl")
    return [{k: v for k, v in x.items() if not depends_on_the_clock(k)} for x in found]


def exported(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())["exported"]


def test_a_run_that_gets_no_better_ends(words, tmp_path, capsys):
    still = {"schedule.lr": 1e-12, "patience": 3}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(words(whole, **still)) == 0
    said = capsys.readouterr().out
    assert "ended after 4 of 12 steps: none of the last 3 evaluations was better" in said
    assert [x["step"] for x in lines(whole) if x["kind"] == "eval"] == [1, 2, 3, 4]
    assert exported(whole)["step"] == 4 and (whole / "report.html").is_file()
    # Killed while it waits, it has waited as long; complete, it takes no step more.
    harm = [partial(sabotage.at_step, 3, sabotage.sigkill)]
    command = words(killed, **still, **{"checkpoint.every_minutes": 1e-9})
    assert sabotage.run(command, tmp_path / "said", harm)[0] == -signal.SIGKILL
    for _ in range(2):
        assert main([*command, "--resume"]) == 0
        assert lines(killed) == lines(whole) and exported(killed) == exported(whole)


def test_a_run_that_gets_better_goes_on(words, tmp_path, monkeypatch):
    from ssld.distill.task import Classification

    best = iter(range(100))

    def better(self, network, metrics, metric):
        return {"metric": "top1", "value": next(best) / 100, "symptoms": []}

    monkeypatch.setattr(Classification, "noted", better)
    assert main(words(tmp_path / "run", steps=6, patience=1)) == 0
    assert lines(tmp_path / "run")[-1]["step"] == 6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"checkpoint.best": "last"}, "patience is 2, but checkpoint.best is last"),
        ({"patience": 0}, "patience"),
    ],
)
def test_patience_without_effect_is_refused(words, tmp_path, capsys, changes, said):
    assert main(words(tmp_path / "run", **{"patience": 2, **changes})) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()
