"""A quota in every writer: one sentence, what was there stays, nothing half-written is left."""

from __future__ import annotations

import contextlib
import json
import resource
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from downstream.dense.report import write_picture
from downstream.transfer import known_datasets as transfer_data
from ssld.ablate import results, state
from ssld.ablate.grid import build
from ssld.common.errors import InputError
from ssld.common.files import write_atomically
from ssld.curate import tables
from ssld.data.unreadable import Unreadables
from ssld.engine import checkpoint
from ssld.engine.checkpoint import replace_export
from ssld.engine.run_folder import RunFolder, cut_after
from ssld.report import page
from zoo.release import save_weights

GRID = {"out": "o", "distill": {}, "grid": {"seed": [0, 1]}}
TABLE = pa.table({"a": list(range(1000))})
NETWORK = nn.Linear(9, 9)


@contextlib.contextmanager
def quota():
    """No file may grow: as on a full disk, for C and Python alike (Python ignores the signal)."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def run_folder(root: Path) -> RunFolder:
    return RunFolder(root, main=True)


def unreadables(root: Path) -> Unreadables:
    source = SimpleNamespace(path="s")
    found = Unreadables([source], 1.0, root / "unreadable.jsonl")  # type: ignore[list-item]
    found.merge([(0, "a", "a", "b")])
    return found


def checkpoint_of(root: Path) -> None:
    checkpoint.save(root, 2, networks={"student": NETWORK}, optimizer={"a": torch.zeros(99)},
                    state={}, keep=1)  # fmt: skip


def exported(root: Path) -> None:
    replace_export(root / "student", lambda folder: save_weights(
        NETWORK.state_dict(), folder / "model.safetensors"))  # fmt: skip


def transferred(root: Path) -> None:
    rows = [SimpleNamespace(sample_id="a", label=0, path="p", pixels=None)]
    transfer_data._write(root / "train.parquet", rows)  # type: ignore[arg-type]


def trial_done(root: Path) -> None:
    trial = build("f", GRID, str(root), []).trials[0]
    state.write_done(root, trial, [{"a": 1}])


WRITERS = {
    "a file": lambda root: write_atomically(root / "a.json", "x" * 99),
    "a page": lambda root: page.write_page(
        root / "report.html", "ssld/report/base.html", title="t"
    ),
    "a line": lambda root: run_folder(root).log({"kind": "train", "step": 1}),
    "a fact": lambda root: run_folder(root).record("a", 1),
    "unreadable images": lambda root: unreadables(root).append([(0, "a", "a", "b")]),
    "all unreadable images": lambda root: unreadables(root).write(),
    "a table": lambda root: tables.write_table(root / "a.parquet", [TABLE], TABLE.schema),
    "an array": lambda root: write_atomically(root / "a.npy", lambda f: np.save(f, np.ones(99))),
    "results": lambda root: results.write_results(build("f", GRID, str(root), []), []),
    "a trial": trial_done,
    "a checkpoint": checkpoint_of,
    "an export": exported,
    "a manifest": transferred,
}
THERE = {"a.json", "report.html", "metrics.jsonl", "unreadable.jsonl", "a.parquet", "a.npy",
         "results.csv", "results.parquet", "train.parquet", "done.json"}  # fmt: skip


def contents(root: Path) -> dict[str, bytes]:
    return {str(x.relative_to(root)): x.read_bytes() for x in root.rglob("*") if x.is_file()}


@pytest.fixture
def folder(tmp_path):
    for name in THERE:
        (tmp_path / name).write_text("old\n")
    (tmp_path / "run.json").write_text(json.dumps({"old": 1}))
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "model.safetensors").write_text("old")
    return tmp_path


@pytest.mark.parametrize("name", WRITERS)
def test_a_quota_leaves_what_was_there(name, folder):
    before = contents(folder)
    with quota(), pytest.raises(InputError, match="cannot be written") as error:
        WRITERS[name](folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    assert "File too large" in str(error.value)
    assert contents(folder) == before
    WRITERS[name](folder)  # and with room it is written
    assert contents(folder) != before


def test_a_resume_can_cut_without_room(folder):
    (folder / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n{"kind": "train", "st')
    with quota():
        cut_after(folder / "metrics.jsonl", 1, False)
    assert (folder / "metrics.jsonl").read_text() == '{"kind": "train", "step": 1}\n'


def test_pictures_without_room_end_no_run(folder, capfd):
    run = SimpleNamespace(folder=SimpleNamespace(path=folder))
    sheet = np.zeros((8, 8, 3), np.uint8)
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch, quota():
        patch.setattr("ssld.common.errors.tqdm.write", lambda line, **_: said.append(line))
        write_picture(run, 1, lambda: sheet)  # type: ignore[arg-type]
    assert "pictures of step 1 could not be made" in said[0]
    assert not list((folder / "pictures").iterdir())


def test_quickstart_in_a_file_or_a_closed_folder(tmp_path, capsys, monkeypatch):
    from ssld.__main__ import main

    (tmp_path / "a").write_text("mine")
    assert main(["quickstart", f"--out={tmp_path / 'a'}"]) == 2
    assert main(["quickstart", f"--out={tmp_path / 'a' / 'b'}"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all(x.startswith("error: ") for x in said)
