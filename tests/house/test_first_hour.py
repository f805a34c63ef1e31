"""docs/first-hour.md is what its data says, and every command in it is one that exists."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest

from ssld.cli import run

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import first_hour  # noqa: E402

ROWS = first_hour.rows()
MODULE = re.compile(r"^torchrun .*? -m (?:ssld|downstream)\.")


def shell_commands() -> list[str]:
    return [x for r in ROWS for x in first_hour.commands(r.get("here", {}).get("sh", ""))]


def python_blocks() -> list[str]:
    return [row["here"]["python"] for row in ROWS if "python" in row.get("here", {})]


def test_the_page_is_of_these_tasks_and_of_their_last_runs():
    shown = first_hour.PAGE.read_text(encoding="utf-8").partition(first_hour.MARK)[2]
    assert shown.strip() == first_hour.page(first_hour.read_results()).strip()


def test_every_task_was_run_as_it_is_written():
    results = first_hour.read_results()
    for row in ROWS:
        kinds = [kind for kind in row.get("here", {}) if kind != "file"]
        typed = "\n".join(first_hour.to_run(row, kind) for kind in kinds)
        assert not kinds or results[row["task"]]["run"] == typed, row["task"]


def test_thirty_tasks_of_five_libraries():
    assert len({row["task"] for row in ROWS}) == len(ROWS) == 30
    assert len({row["of"] for row in ROWS}) == 5


@pytest.mark.parametrize("command", shell_commands())
def test_every_command_parses(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name in ("detector", "balloon"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").write_text(
            "out: runs/out\nsteps: 1\nbackbone: {name: x}\ndata: {train: x}\n"
        )
    monkeypatch.setattr(run, "work_of", lambda *_: 0)
    monkeypatch.setattr(run, "start_asked_for_processes", lambda: None)
    program, *words = shlex.split(MODULE.sub("ssld ", command))
    assert program == "ssld"
    try:
        code = run.main(words)
    except SystemExit as done:  # --print_config
        code = done.code
    assert code == 0, capsys.readouterr().err


def test_a_command_that_does_not_exist_is_noticed(monkeypatch):
    monkeypatch.setattr(run, "work_of", lambda *_: 0)
    assert run.main(["evaluate", "--model", "a", "--data", "b", "--colour", "3"]) == 2


@pytest.mark.parametrize("block", python_blocks())
def test_what_python_imports_is_there(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom):
            assert all(hasattr(import_module(node.module), name.name) for name in node.names)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "ssld":
                assert hasattr(import_module("ssld"), node.attr)


def test_a_command_is_one_line_however_it_is_broken():
    assert first_hour.lines({"sh": "a --b \\\n    c\n\n# why\nd"}) == 2
    assert first_hour.lines({"python": "import a\na.b(\n    1,\n    c={2: 3},\n)\n"}) == 2
    assert first_hour.lines({"file": "# name\nx = 1\n", "sh": "run"}) == 2


@pytest.mark.parametrize(
    ("row", "result", "verdict"),
    [
        ({"here": {}}, ("0", "yes"), "yes"),
        ({"here": {}, "but": "slow"}, ("0", "yes"), "partly: slow"),
        ({"here": {}, "but": "slow"}, ("2", "yes"), "no: it ends with 2"),
        ({"here": {}}, ("0", "no"), "no: it leaves no files"),
        ({"but": "not here"}, None, "no: not here"),
        ({"here": {}}, None, "not run"),
    ],
)
def test_only_what_ran_and_left_its_files_works(row, result, verdict):
    line = result and dict(zip(("exit_code", "made"), result, strict=True))
    assert first_hour.works(row, line) == verdict
