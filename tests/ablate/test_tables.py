"""What comes of trials: the tidy table, means and deviations, plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from ablation_bench import CLOCK, GRID, lines_of

from ssld.ablate import grid, plot, results, summary
from ssld.common import packages
from ssld.common.settings_file import read_settings


def test_tables(bench, capsys):
    bench.write(finetune={}, fix={})
    assert bench.run() == 0
    rows = bench.table()
    assert [row["stage"] for row in rows] == ["distill", "finetune", "fix"] * 4
    parquet = pq.read_table(bench.out / "results.parquet")
    assert parquet.column_names == [*GRID, *results.COLUMNS] == list(rows[0])
    assert parquet.column_names[-2:] == list(CLOCK)
    types = {field.name: str(field.type) for field in parquet.schema}
    assert (types["optimizer.weight_decay"], types["seed"]) == ("double", "int64")
    for typed, text in zip(parquet.to_pylist(), rows, strict=True):
        for key, value in typed.items():
            same = text[key] == "" if value is None else type(value)(text[key]) == value
            assert same, key
    first = parquet.to_pylist()[0]
    expected = {"status": "done", "exported_step": 2, "steps": 4, "epochs": 2.0, "images": 36}
    expected |= {"teacher_top1": 0.75, "images_per_second": 20.0, "top5": None, "resolution": None}
    assert {key: first[key] for key in expected} == expected
    assert first["run"] == "cells/optimizer.weight_decay=1e-5,seed=0/distill" and first["top1"] < 1
    fixed = parquet.to_pylist()[2]
    assert (fixed["resolution"], fixed["top1"], fixed["knn"]) == (40, 0.5, None)
    top1 = 100 * np.array([float(row["top1"]) for row in rows if row["stage"] == "finetune"])
    mean, deviation = top1.reshape(2, 2).mean(1), top1.reshape(2, 2).std(1, ddof=1)
    table = [line.split(" | ") for line in lines_of(bench) if line.startswith("| ")]
    assert table[0][3:5] == ["finetune top-1", "finetune agreement@1"]
    for row, value, decay, a, b in zip(
        table[1:], mean, ("1e-5", "1e-4"), deviation, (2, 2), strict=True
    ):
        assert row[0] == f"| {decay}" and row[3] == f"{value:.2f} ± {a:.2f}" and row[-1] == f"{b} |"
    assert "4 of 4 trials done" in capsys.readouterr().out
    assert lines_of(bench)[0] == "# F" and lines_of(bench)[2].startswith(f"From `{bench.file}`. ")
    page = (bench.out / "report.html").read_text()
    assert "<h1>Ablation: F</h1>" in page and f"From <code>{bench.file}</code>" in page


def test_without_pyarrow_the_table_of_text_is_whole(bench, capsys, monkeypatch):
    ablation = grid.build(str(bench.file), read_settings(bench.file), None, [])
    bench.out.mkdir()
    rows = results.tidy(ablation, {}, {})
    results.write_results(ablation, rows)
    text = (bench.out / "results.csv").read_bytes()
    monkeypatch.setattr(results, "is_installed", lambda name: False)
    packages.say_left_out.cache_clear()
    results.write_results(ablation, rows)
    results.write_results(ablation, rows)
    assert (bench.out / "results.csv").read_bytes() == text
    assert not (bench.out / "results.parquet").exists()  # of before
    assert (
        capsys.readouterr().err.count("note: without pyarrow results.parquet is not written") == 1
    )


def test_axes_named_as_columns_and_no_seed(bench):
    bench.write({"epochs": [1, 2.5], "status": {"a": {"loss.weight": 1}}})
    assert bench.run() == 0
    parquet = pq.read_table(bench.out / "results.parquet").to_pylist()
    assert [(row["grid.epochs"], row["epochs"]) for row in parquet] == [(1.0, 2.0), (2.5, 2.0)]
    assert [row["grid.status"] for row in parquet] == ["a", "a"]
    assert "±" not in (bench.out / "table.md").read_text()
    assert "| 1 |" in lines_of(bench)[-1]


def made(axes: dict[str, Any], top1: Any, folder: Path, **more: Any) -> summary.Summary:
    """A summary of trials whose accuracy is a function of their values."""
    file = folder / "made.yaml"
    tree = {"out": str(folder), "distill": {}, **more, "grid": axes}
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    ablation = grid.build(str(file), read_settings(file), None, [])
    found = {}
    for trial in ablation.trials:
        values = {name: one.value for name, one in trial.values.items()}
        found[trial.name] = [{"stage": "distill", "status": "done", "top1": top1(**values)}]
    return summary.summarise(ablation, results.tidy(ablation, found, {}), {})


def test_what_is_drawn(tmp_path):
    axes = {"lr": [1, 10, 100], "mode": {"a": {"flip": 0}, "b": {"flip": 1}}, "seed": [0, 1, 2]}
    found = made(axes, lambda lr, mode, seed: lr / 200 + (mode == "b") / 4 + seed / 100, tmp_path)
    rate, mode, _ = found.ablation.axes
    lines, title = plot.lines_of(found, rate, ["distill"], "top1")
    assert title == "mode" and [line.label for line in lines] == ["a", "b"]
    assert [x for x, _ in lines[0].points] == [1, 10, 100]
    for line, more in zip(lines, (0, 0.25), strict=True):
        means = [spread.mean for _, spread in line.points]
        assert means == pytest.approx([0.015 + more, 0.06 + more, 0.51 + more])
        assert [x.deviation for _, x in line.points] == pytest.approx([0.01] * 3)
    figure = plot.draw(found, rate)
    assert (
        figure.axes[0].get_xscale() == "log" and figure.legends[0].get_title().get_text() == "mode"
    )
    assert [x.get_text() for x in figure.axes[0].get_xticklabels()] == ["1", "10", "100"]
    low, high = figure.axes[0].get_ylim()
    assert low < 0.5 and high > 77
    named = plot.draw(found, mode).axes[0]
    assert named.get_xscale() == "linear"
    assert [x.get_text() for x in named.get_xticklabels()] == ["a", "b"]


def test_axes_have_their_full_names(tmp_path):
    axes = {"loss.name": ["js", "kl"], "schedule.lr": [1, 2], "finetune.schedule.lr": [1, 2]}
    found = made(axes, lambda **_: 0.5, tmp_path, finetune={})
    figure = plot.draw(found, found.ablation.axes[0])
    assert figure.axes[0].get_xlabel() == "loss.name"
    title = figure.legends[0].get_title().get_text()
    assert title == "schedule.lr,\nfinetune.schedule.lr"
    head = summary.table(found)[0]
    assert head[:3] == ["loss.name", "schedule.lr", "finetune.schedule.lr"]
    trial = found.ablation.trials[0].name
    assert trial == "loss.name=js,schedule.lr=1,finetune.schedule.lr=1"


def test_many_lines_become_their_mean_of_what_is_complete(tmp_path):
    def top1(lr: float, x: int, seed: int) -> float | None:
        return None if (lr, x, seed) == (2, 8, 1) else (lr + x + seed) / 100

    axes = {"lr": [1, 2], "x": {str(i): {"steps": i} for i in range(1, 10)}, "seed": [0, 1]}
    found = made(axes, lambda lr, x, seed: top1(lr, int(x), seed), tmp_path)
    lines, title = plot.lines_of(found, found.ablation.axes[0], ["distill"], "top1")
    assert title == "mean over x" and [line.label for line in lines] == ["9 combinations"]
    without = np.mean([x for x in range(1, 10) if x != 8])
    assert lines[0].points[0][1].points == pytest.approx([0.06, (2 + without) / 100])
    assert lines[0].points[1][1].points == pytest.approx([0.07, (3 + without) / 100])


@pytest.mark.parametrize(
    ("values", "scale", "places"),
    [
        ([0.1, 0.2, 0.4], "linear", [0.1, 0.2, 0.4]),
        ([360, 30], "log", [360, 30]),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], "linear", list(range(1, 11))),
        ([1e-3, 0, 1e-5], "linear", [2, 0, 1]),
        ([0, 0.25, 1], "linear", [0, 0.25, 1]),
    ],
)
def test_scales(tmp_path, values, scale, places):
    axis = made({"x": values}, lambda x: 0.5, tmp_path).ablation.axes[0]
    assert plot.is_log(axis) == (scale == "log")
    assert plot.places(axis) == places
