"""The suite of foreign inputs can fail: each promise is broken on purpose, the seed is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from sandbox import hunt, kind_of

BROKEN = {
    "traceback": "KeyError: 'architecture'",
    "exit": "SystemExit: 3",
    "crash": "the process died",
    "hang": "over 1 s",
    "hog": "took 1",
    "much_more": "would have taken",
    "writes": "wrote to",
    "removes": "os.remove of",
    "removes_at": "os.remove of 'x'",
    "renames": "os.rename of",
    "links": "os.symlink of",
    "program": "ran a program: subprocess.Popen",
    "shell": "ran a program: os.system",
    "code": "ran code of the input",
    "connects": "connected to ('192.0.2.1', 80)",
    "lines": "9 lines",
    "silent": "says nothing",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_promise_is_reported_with_its_seed(name: str, tmp_path: Path) -> None:
    report = hunt(f"planted.{name}", 7, 2, folder=tmp_path, seconds=1 if name == "hang" else 10)
    assert report.tried == 2 and report.failed.total() == 2 and not report.outcomes
    assert BROKEN[name] in report.failures[0]
    assert f"sandbox.py planted.{name} 7" in report.failures[0]


def test_what_is_right_is_not_accused_and_counted_by_outcome(tmp_path: Path) -> None:
    report = hunt("planted.good", 0, 30, folder=tmp_path)
    assert not report.failures and report.outcomes.total() == 30
    assert set(report.outcomes) == {"read", "refused", "unreadable"}


@pytest.mark.parametrize("name", ["images.files", "annotations.coco", "models.pickle"])
def test_an_input_is_a_function_of_its_seed(name: str, tmp_path: Path) -> None:
    import random

    written = []
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        (tmp_path / folder).mkdir()
        kind_of(name).write(random.Random(f"{name}/{seed}"), tmp_path / folder)
        files = sorted((tmp_path / folder).rglob("*"))
        written.append([(x.name, x.read_bytes()) for x in files if x.is_file()])
    assert written[0] == written[1] != written[2]
