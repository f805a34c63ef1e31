"""A main process that is busy for hours ends no run: neither by a timeout, nor by what it reads."""

from __future__ import annotations

import json
import socket
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import distributed

from ssld.common.errors import InputError
from ssld.curate.context import Processes
from ssld.data.unreadable import Unreadables
from ssld.engine import run_folder
from ssld.engine.processes import open_accelerator, open_processes
from ssld.engine.progress import Progress
from ssld.engine.run_folder import History, cut_after, lines_of


@pytest.fixture
def launched(monkeypatch):
    """As torchrun starts the only process of a group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": port}
    found |= {"OMP_NUM_THREADS": 1}  # accelerate warns where it is not set
    for name, value in {**found, "MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}.items():
        monkeypatch.setenv(name, str(value))
    yield
    distributed.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)


def opened_by_a_run() -> None:
    config = SimpleNamespace(precision="fp32", trackers=[], out="o", sync_batch_norm=True)
    open_accelerator(config)  # type: ignore[arg-type]


def opened_by_a_recipe() -> None:
    open_processes()
    opened_by_a_run()


def opened_by_a_curation() -> None:
    Processes()._state()


@pytest.mark.parametrize("how", [opened_by_a_run, opened_by_a_recipe, opened_by_a_curation])
def test_processes_wait_for_each_other_longer_than_torch_lets_them(how, launched):
    how()
    group = distributed.distributed_c10d._get_default_group()
    assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(days=7)


def line(step: int, kind: str = "train", **more) -> dict:
    found = {"kind": kind, "step": step, "epoch": step / 9, "loss": 1 / step, "unreadable": 0}
    return {**found, **more}


def write(file, lines, end: str = "") -> None:
    with file.open("a") as opened:
        opened.write("".join(json.dumps(x) + "\n" for x in lines) + end)


def test_no_line_is_read_twice_and_plots_have_room(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "MOST_POINTS", 8)
    file, seen = tmp_path / "metrics.jsonl", []
    parse = run_folder._parsed
    monkeypatch.setattr(run_folder, "_parsed", lambda *x: seen.append(1) or parse(*x))
    known = History(file)
    assert known.training() == [] and known.evaluations() == []
    for step in range(1, 31):
        write(file, [line(step)] + ([line(step, "eval")] if step % 10 == 0 else []))
        assert len(known.training()) <= 8
    assert [x["step"] for x in known.evaluations()] == [10, 20, 30] and len(seen) == 33
    points = known.training()
    assert [x["step"] for x in points] == [4, 8, 12, 16, 20, 24, 28, 30]
    assert points[0]["loss"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert points[-1]["loss"] == pytest.approx((1 / 29 + 1 / 30) / 2)


def test_few_lines_are_shown_as_they_are_and_half_a_line_waits(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [line(1), line(2, divergence=0.5), line(2, "eval")]
    write(file, lines, end='{"kind": "tr')
    known = History(file)
    assert known.training() == lines[:2] and known.evaluations() == lines[2:]
    assert list(lines_of(file)) == lines
    with file.open("a") as opened:
        opened.write(json.dumps(line(3))[len('{"kind": "tr') :] + "\n")
    assert known.training()[-1] == line(3)


@pytest.mark.parametrize("block", [1, 7, 100, 2**16])
@pytest.mark.parametrize("end", ["", '{"kind": "train", "st', "\0" * 300])
def test_a_resume_cuts_what_it_repeats(tmp_path, monkeypatch, block, end):
    monkeypatch.setattr(run_folder, "BLOCK_BYTES", block)
    file = tmp_path / "metrics.jsonl"
    lines = [line(1), line(2), line(2, "eval"), line(3)]
    lines += [line(4, note="\u9c7c" * 40), line(4, "eval")]
    kept_of = {(9, False): 6, (4, True): 5, (3, True): 4, (2, True): 2, (0, True): 0}
    for (step, pending), kept in kept_of.items():
        file.unlink(missing_ok=True)
        write(file, lines, end)
        cut_after(file, step, pending)
        assert list(lines_of(file)) == lines[:kept]
        assert file.read_bytes().endswith(b"\n") or not kept


@pytest.mark.parametrize("text", ["nonsense", "[1]", '{"step": "x", "kind": "train"}', "[" * 9999])
def test_a_damaged_line_is_named(tmp_path, text):
    file = tmp_path / "metrics.jsonl"
    file.write_text(json.dumps(line(1)) + f"\n{text}\n" + json.dumps(line(2)) + "\n")
    with pytest.raises(InputError, match=r"metrics.jsonl is damaged: the line that ends at byte"):
        History(file).evaluations()


def test_images_do_not_wait_for_a_line():
    progress = Progress.__new__(Progress)
    progress.kept = []
    batch = SimpleNamespace(weight=torch.ones(2), ids=["a", "b"], images=torch.zeros(2, 9, 9, 3))
    progress.add(1, {"loss": torch.zeros(2, requires_grad=True)}, batch, batch.weight, None)  # type: ignore[arg-type]
    ((step, losses, weight, ids, *_),) = progress.kept
    assert (step, ids) == (1, ["a", "b"]) and weight.sum() == 2
    assert not losses["loss"].requires_grad


def test_unreadable_images_are_added_to_the_log_and_sorted_at_the_end(tmp_path, monkeypatch):
    from ssld.data import unreadable as batches

    written = []
    whole = batches.write_atomically
    monkeypatch.setattr(batches, "write_atomically", lambda *x: written.append(1) or whole(*x))
    log = tmp_path / "unreadable.jsonl"
    source = SimpleNamespace(path="s", __len__=lambda: 99)
    known = Unreadables([source], 1.0, log)  # type: ignore[list-item]
    for found in ([(0, "b", "b.jpg", "x"), (0, "a", "a\udce9", "y")], [(0, "0", "0", "z")]):
        known.append(found)
        known.merge(found)
    names = [json.loads(x)["sample_id"] for x in log.read_text().splitlines()]
    assert names == ["a", "b", "0"] and not written
    for _ in range(2):
        known.write()
    names = [json.loads(x)["sample_id"] for x in log.read_text().splitlines()]
    assert names == ["0", "a", "b"] and len(written) == 1
