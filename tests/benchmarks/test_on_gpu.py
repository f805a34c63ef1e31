"""benchmarks/on_gpu.sh, every line of it with small sizes, and what it says of a failing check."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import on_gpu

    return on_gpu


def test_every_line_runs_without_a_gpu(tmp_path, on_gpu):
    file = tmp_path / "on-gpu.md"
    said = subprocess.run(
        ["bash", BENCHMARKS / "on_gpu.sh", file],
        env=os.environ | {"SMALL": "1", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    text = file.read_text()
    titles = re.findall("^## (.+)$", text, re.MULTILINE)
    assert len(titles) == len(on_gpu.gpu_checks.CHECKS) + len(on_gpu.SMALL)
    scripts = {line.split()[0] for line in on_gpu.SMALL}
    assert scripts == {line.split()[0] for line in on_gpu.LARGE}
    assert all("\n| " in section for section in text.split("\n## ")[1:])  # each has its table
    assert "FAILED" not in text and len(re.findall(r"\| ok \|", text)) >= 18


def test_what_goes_wrong_is_written_and_the_rest_goes_on(tmp_path, on_gpu, monkeypatch):
    finding = on_gpu.gpu_checks.Finding

    def too_far(_) -> Iterator[object]:
        yield finding("near", 0.5, 1)
        yield finding("far", 2, 1)
        yield finding("no number", float("nan"), 1)

    def breaks(_) -> Iterator[object]:
        yield finding("before", 0, 0)
        raise ValueError("a kernel is missing")

    def hangs(_) -> Iterator[object]:
        while True:
            pass
        yield

    def innocent(_) -> Iterator[object]:
        yield finding("equal", 0, 0)

    checks = [too_far, breaks, hangs, innocent]
    monkeypatch.setattr(on_gpu.gpu_checks, "CHECKS", checks)
    monkeypatch.setattr(on_gpu, "SMALL", [])
    monkeypatch.setattr(on_gpu, "CHECK_SECONDS", 1)
    file = tmp_path / "found.md"
    monkeypatch.setattr(sys, "argv", ["on_gpu.py", str(file), "--small"])
    assert on_gpu.main() == 1
    first, second, third, last = file.read_text().split("\n## ")[1:]
    assert "| near | 0.5 | 1 | ok |" in first and first.count("FAILED |") == 2
    assert "| before | 0 | 0 | ok |" in second
    assert "FAILED: ValueError: a kernel is missing" in second
    assert "FAILED: OutOfTime: not done after 1 seconds" in third
    assert "| equal | 0 | 0 | ok |" in last and "FAILED" not in last
    monkeypatch.setattr(on_gpu.gpu_checks, "CHECKS", [innocent])
    assert on_gpu.main() == 0
