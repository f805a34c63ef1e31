"""Stored labels of R views and k classes against asking the teacher online, for docs/labels.md.

    python benchmarks/prepare.py evidence --packs PACKS --only clothing cifar   # once
    python benchmarks/labels_study.py run [NAME ...]        # 40 minutes; goes on
    python benchmarks/labels_study.py collect               # table and figure, from the runs
    python benchmarks/labels_study.py collect --runs ""     # the same from the committed CSV

`run` builds the label sets that benchmarks/labels/NAME.yaml names, and gives the file to `ssld
ablate`, which writes RUNS/NAME. All seeds share the label sets, whose own seed is 0. Two sets are
wrong on purpose: what the teacher says of one view of an image, the centre or view 0, is put down
for all of its 50 views. Every student is measured in one way, by what the teacher says of held-out
images in all of its classes: a run from k classes has a truncated divergence itself.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from measure import Rows, less, places, plain, read, show, spread, ssld, study, values, write

from ssld.data.labels import known_index
from ssld.data.loading import ViewBatches, eval_batches
from ssld.data.sources import open_source
from ssld.distill.config import LossConfig
from ssld.distill.stored import StoredDistillation
from ssld.labels.batches import TaughtBatches
from ssld.labels.format import (
    INDEX,
    KINDS,
    MANIFEST,
    ids_name,
    open_shard,
    read_index,
    write_index,
    write_shard,
)
from ssld.labels.label_set import LabelSet
from ssld.models.opening import open_network
from ssld.report.plots import COLOURS

HERE = Path(__file__).parent
OUT = HERE.parent / "docs" / "labels"
SETS = ("clothing", "cifar")
VIEWS = 50
"""Of the wrong sets, as of the largest right one."""
ONLINE = "online"
METRICS = {"agreement1": "agreement@1, %", "top1": "top-1, %", "divergence": "KL, nats"}
Tensors = Mapping[str, np.ndarray]


def recipe(name: str) -> dict[str, Any]:
    """Of a set, as the file has it."""
    return yaml.safe_load((HERE / "labels" / f"{name}.yaml").read_text())


def right_sets(name: str) -> list[Path]:
    """Of the file's grid; the last has all views and all classes."""
    trials = recipe(name)["grid"]["labels"].values()
    folders = [Path(x["labels"]) for x in trials if "labels" in x]
    return [folder for folder in folders if folder.name[0].isdigit()]


def run(names: list[str], runs: Path) -> None:
    """One set after the other, on one core; what is complete is skipped."""
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in names or SETS:
        build(name)
        ssld("ablate", HERE / "labels" / f"{name}.yaml", f"--out={runs / name}")
        measure(name, runs / name)


def build(name: str) -> None:
    """The label sets of a file's grid."""
    right = right_sets(name)
    for folder in right:
        views, classes = folder.name.split("-")
        _build(name, folder, views=views, top_k=classes)
    whole, data = right[-1], recipe(name)["distill"]["data"]
    centre = whole.with_name("held-out")  # the training images, as held-out ones are seen
    _build(name, centre, views=1, top_k=classes, **{"data.val": data["labeled"]})
    _wrong(whole, whole.with_name("centre"), _all(centre, "val"))
    _wrong(whole, whole.with_name("view-0"), _all(whole, "train"))


def _build(name: str, folder: Path, **more: object) -> None:
    """With `ssld`; a set that was begun is gone on with."""
    given = recipe(name)
    settings = folder.with_name(f"{folder.name}.yaml")
    settings.parent.mkdir(parents=True, exist_ok=True)
    teacher = given["grid"]["labels"][ONLINE]["teacher.checkpoint"]
    settings.write_text(yaml.safe_dump(given["distill"]))
    if not (folder / INDEX).is_file():
        words = [f"--{key}={value}" for key, value in more.items()]
        words += [f"--teacher.checkpoint={teacher}", f"--out={folder}"]
        ssld("labels", "build", f"--config={settings}", *words)


def _all(folder: Path, kind: str) -> Tensors:
    """Labels of the first view of all samples, [samples, 1, k]."""
    shards = [open_shard(folder / shard.file) for shard in read_index(folder)[kind]]
    return {name: np.concatenate([x[name][:, :1] for x in shards]) for name in shards[0]}


def _wrong(whole: Path, folder: Path, said: Tensors) -> None:
    """A copy of a label set in which all views of an image have one label."""
    if (folder / INDEX).is_file():
        return
    folder.mkdir(exist_ok=True)
    for file in (MANIFEST, *map(ids_name, KINDS)):
        shutil.copyfile(whole / file, folder / file)
    index = read_index(whole)
    written = {kind: [] for kind in KINDS}
    for kind in KINDS:
        for number, shard in enumerate(index[kind]):
            tensors = open_shard(whole / shard.file)
            if kind == "train":
                rows = slice(shard.first, shard.first + shard.samples)
                tensors = {x: np.repeat(said[x][rows], VIEWS, axis=1) for x in tensors}
            given = (shard.first, dict(tensors), shard.fingerprints)
            written[kind].append(write_shard(folder, kind, number, *given))
    write_index(folder, written)


def measure(name: str, runs: Path) -> None:
    """What each finished student says of held-out images, in RUNS/NAME/measured."""
    stored = LabelSet(str(right_sets(name)[-1]))
    val = [open_source(recipe(name)["distill"]["data"]["val"])]
    for cell in sorted((runs / "cells").iterdir()):
        file = runs / "measured" / f"{cell.name}.json"
        if not (cell / "done.json").is_file() or file.is_file():
            continue
        network = open_network("student", arch=None, checkpoint=str(cell / "distill")).eval()
        labels = known_index(val, network)
        views = ViewBatches(val, stored.eval_view, labels)
        batches = eval_batches(TaughtBatches(views, stored.labels("val"), 1), batch_size=128)
        with torch.inference_mode():
            metrics = StoredDistillation(stored, LossConfig()).evaluate(network, batches).metrics()
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({key: metrics[key] for key in METRICS}))
        print(cell.name, file.read_text(), flush=True)


def collect(runs: Path, out: Path) -> None:
    """A CSV of what there is."""
    rows = [row for name in SETS for row in _collected(name, runs / name)]
    if not rows:
        raise SystemExit(f"{runs} has no finished run; `run` makes them")
    write(out / "runs.csv", rows)


def _collected(name: str, runs: Path) -> Iterator[dict[str, Any]]:
    for cell in read(runs / "results.csv"):
        file = runs / "measured" / f"{Path(cell['run']).parent.name}.json"
        if cell["status"] == "done" and file.is_file():
            labels = recipe(name)["grid"]["labels"][cell["labels"]].get("labels")
            size = sum(x.stat().st_size for x in Path(labels).glob("train-*")) if labels else ""
            place = {"set": name, "labels": cell["labels"], "seed": cell["seed"]}
            yield {**place, **json.loads(file.read_text()), "bytes": size}


def tables(out: Path) -> None:
    """Each set's scores, and what they are less the online ones of the same seed, with a 95 %
    interval over seeds."""
    rows = read(out / "runs.csv")
    for name in places(rows, "set"):
        own = [row for row in rows if row["set"] == name]
        print(f"\n{name}, {len(places(own, 'seed'))} seeds\n")
        show(
            ["labels", "MiB", *(x for title in METRICS.values() for x in (title, "less online"))],
            [[x, _mib(own, x), *_cells(own, x)] for x in places(own, "labels")],
        )


def _mib(rows: Rows, labels: str) -> str:
    size = next(row["bytes"] for row in rows if row["labels"] == labels)
    return f"{int(size) / 2**20:.1f}" if size else ""


def _cells(rows: Rows, labels: str) -> Iterator[str]:
    for column in METRICS:
        scale, digits = (1, 3) if column == "divergence" else (100, 1)
        scores = values(rows, column, labels=labels)
        yield spread([x * scale / 100 for x in scores], digits)
        there = {"labels": ONLINE}
        yield less(rows, column, {"labels": labels}, there, scale=scale, digits=digits)


def draw(out: Path) -> None:
    """Each metric over the views: a line for each k; what has no views lies across."""
    rows = read(out / "runs.csv")
    names, columns = places(rows, "set"), ("agreement1", "divergence")
    figure = Figure(figsize=(3.6 * len(names), 5.6), layout="constrained")
    grid = figure.subplots(len(columns), len(names), squeeze=False)
    for metric, line in zip(columns, grid, strict=True):
        for name, axes in zip(names, line, strict=True):
            own = [row for row in rows if row["set"] == name]
            _draw(plain(axes), own, metric)
            axes.set_title(name, fontsize=10)
            axes.set_ylabel(METRICS[metric])
    for axes in grid[0]:
        below, above = axes.get_ylim()
        axes.set_ylim(below, above + 0.35 * (above - below))  # where the legend is
        axes.legend(frameon=False, fontsize=7, ncols=2, loc="upper left")
    figure.savefig(out / "views.png", dpi=110)


def _draw(axes: Any, rows: Rows, metric: str) -> None:
    colours = iter(COLOURS)
    lines: dict[str, list[tuple[int, list[float]]]] = {}
    for labels in places(rows, "labels"):
        scale = 100 if metric == "divergence" else 1  # `values` makes percent of all
        scores = [x / scale for x in values(rows, metric, labels=labels)]
        if labels[0].isdigit():
            count, _, classes = labels.partition(" views ")
            lines.setdefault(classes, []).append((int(count), scores))
        else:
            axes.axhline(np.mean(scores), color=next(colours), ls="--", lw=1, label=labels)
    for classes, points in lines.items():
        means = [np.mean(scores) for _, scores in points]
        errors = [np.std(scores, ddof=1) if scores[1:] else 0 for _, scores in points]
        counts = [count for count, _ in points]
        axes.errorbar(counts, means, errors, marker="o", ms=4, color=next(colours), label=classes)
        axes.set_xscale("log")
        axes.set_xticks(counts, counts)
        axes.minorticks_off()
    axes.set_xlabel("views of an image")


if __name__ == "__main__":
    study(__doc__, "runs/labels", OUT, run=run, collect=collect, shown=(tables, draw))
