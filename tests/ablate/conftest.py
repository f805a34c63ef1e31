"""`ssld ablate` with a stand-in for `ssld recipe`."""

from __future__ import annotations

from pathlib import Path

import pytest
from ablation_bench import FAKE, NAMED, Bench
from matplotlib.figure import Figure

from ssld.ablate import command, pool

CHECK = command.check_recipes


@pytest.fixture
def bench(tmp_path, monkeypatch) -> Bench:
    found = Bench(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in NAMED:
        Path(name).touch()
    monkeypatch.setattr(pool, "COMMAND", FAKE)
    monkeypatch.setattr(pool, "POLL_SECONDS", 0.01)
    monkeypatch.setenv("FAKE_RECIPE", str(found.asked))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(command, "check_recipes", lambda _: None)  # takes long
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **_: file.write(b"pixels"))
    return found


@pytest.fixture
def checked(bench, monkeypatch) -> Bench:
    """Recipes are checked as they should be."""
    monkeypatch.setattr(command, "check_recipes", CHECK)
    return bench
