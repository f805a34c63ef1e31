"""`mfu_percent` is a share of what the device can do, or is not said."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pictures
import pytest
import short_runs
import torch

from ssld.__main__ import main
from ssld.engine import start, timing


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch) -> None:
    pictures.leave_out(monkeypatch)


def trained(colours, teacher_file, out, **changes) -> list[dict]:
    given = {"steps": 3, "batch_size": 4, "data.val": None, "data.holdout": 0, **changes}
    assert main(["distill", *short_runs.words(colours, teacher_file, out, **given)]) == 0
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "train"]


def clock(monkeypatch, *seconds: float) -> list[float]:
    """Products take these times in turn, the last one from then on."""
    left, now, taken = list(seconds), [0.0], []
    monkeypatch.setattr(timing, "_product_flops", timing._product_flops.__wrapped__)

    def product(a, b):
        taken.append(left.pop(0) if len(left) > 1 else left[0])
        now[0] += taken[-1]

    monkeypatch.setattr(torch, "mm", product)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return taken


def test_the_fastest_product_counts(monkeypatch):
    taken = clock(monkeypatch, 0.05, 0.004, 0.002, 0.003, 0.009, 0.005)
    found = timing.peak_flops(torch.device("cpu"), ["fp32"])
    assert found == pytest.approx(2 * 768**3 / 0.002) and len(taken) == 1 + timing.TRIES
    assert torch.backends.cuda.matmul.allow_tf32 is False


def test_a_slow_machine_is_not_kept(monkeypatch):
    taken = clock(monkeypatch, 3.0)
    assert timing.peak_flops(torch.device("cpu"), ["fp32"]) == pytest.approx(2 * 768**3 / 3.0)
    assert len(taken) == 1


def test_the_fastest_format_in_use_counts(colours, teacher_file, tmp_path, monkeypatch):
    speeds = {torch.float32: 2e12, torch.bfloat16: 9e12}
    monkeypatch.setattr(timing, "_product_flops", lambda device, dtype: speeds[dtype])
    out = tmp_path / "run"
    trained(colours, teacher_file, out, **{"teacher.dtype": "bf16"})
    assert json.loads((out / "run.json").read_text())["peak_flops"] == 9e12
    assert timing.peak_flops(torch.device("cpu"), []) == 2e12


def test_what_is_beyond_the_ceiling_is_not_said_but_why(
    colours, teacher_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(start, "peak_flops", lambda *_: 1.0)
    lines = trained(colours, teacher_file, tmp_path / "run")
    assert len(lines) == 3 and not any("mfu_percent" in line for line in lines)
    said = capsys.readouterr().out
    assert said.count("no mfu_percent") == 1 and "fewer operations than are counted" in said
    assert "mfu" not in json.dumps(lines)


def test_what_is_below_it_is(colours, teacher_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(start, "peak_flops", lambda *_: 1e15)
    lines = trained(colours, teacher_file, tmp_path / "run")
    assert all(0 <= line["mfu_percent"] < 100 for line in lines)
    assert "no mfu_percent" not in capsys.readouterr().out
