"""Ways to learn from unlabeled images on real ones, for docs/self-training.md: the three methods,
the parts of Scale-Equivalent Distillation, the shape of Rethinking Pre-training and Self-training.

    python benchmarks/prepare.py downstream --packs PACKS     # once, writes runs/downstream
    python benchmarks/methods_study.py run [NAME ...]         # hours on two cores; goes on
    python benchmarks/methods_study.py collect                # tables and figures, from the runs
    python benchmarks/methods_study.py collect --runs ""      # the same from the committed CSVs

What is run is `ssld methods` and `ssld ablate` of benchmarks/methods/*.yaml, in RUNS/NAME.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from measure import Rows, draw_intervals, plain, read, show, spread, ssld, study, write

from downstream.ab.records import Result, read_result
from downstream.ab.statistics import Difference, compare
from ssld.report.plots import COLOURS

HERE = Path(__file__).parent
OUT = HERE.parent / "docs" / "self-training"
SEEDS = 3
COMPARED = ("bccd-faster-rcnn", "bccd-retinanet", "camvid")
METHODS = ("supervised", "data_distillation", "rethinking", "sed")
POLICIES = {
    "S1": ("--augment.scale=[0.8, 1.2]",),
    "S2": ("--augment.scale=[0.8, 1.2]", "--augment.policy=autoaugment"),
    "S3": ("--augment.scale=[0.5, 2]", "--augment.policy=autoaugment"),
    "S4": ("--augment.scale=[0.5, 2]", "--augment.policy=randaugment"),
}
"""arXiv:2006.06882, section 3.1."""
STARTS = {
    "pre-trained": (),
    "random": ("--backbone.pretrained=false", "--backbone.frozen_stages=0"),
}
BALANCE_OFF = ("--rethinking.student.balance.alpha=null",)


def studies() -> dict[str, list[str]]:
    """Words of `ssld` of each study, by name."""
    found = {}
    for name in COMPARED:
        chosen = [m for m in (*METHODS, "oracle") if name != "camvid" or m != "sed"]
        found[name] = ["methods", _file(name), "--shares", "0.1", "0.3", "--methods", *chosen]
    found["bccd-sed"] = ["ablate", _file("bccd-sed")]
    for start, weights in STARTS.items():
        for policy, augment in POLICIES.items():
            found[f"policies/{policy}-{start}"] = [*_policies(), *augment, *weights]
    found["policies/S1-pre-trained-unbalanced"] = [*_policies(), *POLICIES["S1"], *BALANCE_OFF]
    return found


def _file(name: str) -> str:
    return str(HERE / "methods" / f"{name}.yaml")


def _policies() -> list[str]:
    return ["methods", _file("policies"), "--methods", "supervised", "rethinking"]


def run(names: list[str], runs: Path) -> None:
    """One after the other, on one core; complete runs are skipped."""
    os.environ["OMP_NUM_THREADS"] = "1"
    for name, (command, *words) in studies().items():
        if not names or name.startswith(tuple(names)):
            seeds = [f"--seeds={SEEDS}"] if command == "methods" else []
            ssld(command, *words, *seeds, f"--out={runs / name}")


def collect(runs: Path, out: Path) -> None:
    """CSVs of what there is."""
    scores, differences = [], []
    for name in studies():
        found = _parts(runs / name) if name == "bccd-sed" else _methods(runs / name)
        for place, own, others in found:
            line = {"study": name, **place}
            scores += [{**line, "seed": seed, "score": x} for seed, x in sorted(own.items())]
            differences += [{**line, "less": other, **x} for other, x in others.items()]
    if not scores:
        raise SystemExit(f"{runs} has no finished study; `run` makes them")
    write(out / "methods.csv", scores)
    write(out / "methods-differences.csv", differences)


Found = Iterator[tuple[dict[str, Any], dict[str, float], dict[str, dict[str, Any]]]]
"""Share and method, scores by seed, and differences by what they are less than."""


def _methods(folder: Path) -> Found:
    """Of `ssld methods`."""
    if not (folder / "methods.json").is_file():
        return
    for row in json.loads((folder / "methods.json").read_text())["rows"]:
        others = {}
        for name, one in row["differences"].items():
            interval = one["over_both"] or one["over_seeds"] or {}
            limits = {side: interval.get(side, "") for side in ("low", "high")}
            others[name.removeprefix("less_")] = {"mean": one["mean"], **limits}
        place = {"share": f"{row['share']:.2f}", "method": row["method"]}
        yield place, row["scores"], others


def _parts(folder: Path) -> Found:
    """Of `ssld ablate`: each of its rows less supervised training, and less all parts."""
    results: dict[str, dict[str, Result]] = {}
    for cell in sorted((folder / "cells").glob("losses=*,seed=*")):
        values = dict(value.split("=", 1) for value in cell.name.split(","))
        for model in cell.glob("**/model"):  # there is one where the run is complete
            result = read_result(model.parent, "detection")
            results.setdefault(values["losses"], {})[values["seed"]] = result
    for name, own in results.items():
        others = {x: _less(results[x], own) for x in ("supervised", "all") if x in results}
        others.pop(name, None)
        scores = {seed: x.score for seed, x in own.items()}
        yield {"share": "0.10", "method": name}, scores, others


def _less(a: dict[str, Result], b: dict[str, Result]) -> dict[str, Any]:
    pairs = [(a[seed], b[seed]) for seed in sorted(set(a) & set(b))]
    records = [(x.record.statistic, y.record.statistic) for x, y in pairs if x.record and y.record]
    images = len(pairs[0][0].record.ids) if pairs[0][0].record else 0
    scores = [x.score for x, _ in pairs], [y.score for _, y in pairs]
    found: Difference = compare(*scores, records, images=images)
    interval = found.deciding
    limits = {side: getattr(interval, side) if interval else "" for side in ("low", "high")}
    return {"mean": found.mean, **limits}


def tables(out: Path) -> None:
    """Print scores and differences of each study. Where nothing is shown, half of the interval is
    about the difference that would have been."""
    scores, differences = read(out / "methods.csv"), read(out / "methods-differences.csv")
    for name in dict.fromkeys(row["study"] for row in scores):
        print(f"\n{name}\n")
        own = [row for row in scores if row["study"] == name]
        places = dict.fromkeys((row["share"], row["method"]) for row in own)
        compared = [row for row in differences if row["study"] == name]
        others = list(dict.fromkeys(row["less"] for row in compared))
        rows = []
        for share, method in places:
            less = {x["less"]: x for x in compared if (x["share"], x["method"]) == (share, method)}
            each = [_points(less[x]) if x in less else "" for x in others]
            rows.append([share, method, spread(_scores(own, share, method)), *each])
        show(["labels", "method", "%", *(f"less {x}" for x in others)], rows)


def _scores(rows: Rows, share: str, method: str) -> list[float]:
    chosen = [x for x in rows if x["share"] == share and x["method"] == method]
    return [100 * float(x["score"]) for x in chosen]


def _interval(row: dict[str, str]) -> tuple[float, float] | None:
    return (100 * float(row["low"]), 100 * float(row["high"])) if row["low"] else None


def _points(row: dict[str, str]) -> str:
    interval = _interval(row)
    if interval is None:
        return f"{100 * float(row['mean']):+.1f}"
    low, high = interval
    text = f"{100 * float(row['mean']):+.1f} [{low:+.1f} to {high:+.1f}]"
    return text if low <= 0 <= high else f"**{text}**"


def draw(out: Path) -> None:
    """The differences from supervised training, with their intervals: methods, then policies, then
    parts."""
    rows = [x for x in read(out / "methods-differences.csv") if x["less"] == "supervised"]
    kinds = [
        [x for x in rows if x["study"] in COMPARED],
        [x for x in rows if x["study"].startswith("policies")],
        [x for x in rows if x["study"] == "bccd-sed"],
    ]
    kinds = [own for own in kinds if own]
    heights = [len(own) + 1 for own in kinds]
    figure = Figure(figsize=(9, 0.27 * sum(heights) + 0.5), layout="constrained")
    parts = figure.subplots(len(kinds), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, own in zip(parts, kinds, strict=True):
        axes = plain(part, "x")
        names = [f"{x['study'].removeprefix('policies/')} {x['share']}: {x['method']}" for x in own]
        means = [100 * float(row["mean"]) for row in own]
        limits = [_interval(row) or (mean, mean) for row, mean in zip(own, means, strict=True)]
        draw_intervals(axes, list(zip(names, means, limits, strict=True)))
    parts[-1].set_xlabel("points less supervised training, 95 % interval over seeds and images")
    figure.savefig(out / "methods-differences.png", dpi=110)


def draw_scores(out: Path) -> None:
    """The score of each set over the share of the labels: mean and standard deviation of seeds."""
    rows = read(out / "methods.csv")
    names = [x for x in COMPARED if any(row["study"] == x for row in rows)]
    figure = Figure(figsize=(3.2 * len(names), 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        own = [row for row in rows if row["study"] == name]
        shares = sorted({row["share"] for row in own} - {"1.00"})
        for number, (colour, method) in enumerate(zip(COLOURS, METHODS, strict=False)):
            aside = 0.5 * number - 0.75  # points of a share do not lie on each other
            found = [(100 * float(x) + aside, _scores(own, x, method)) for x in shares]
            found = [(place, values) for place, values in found if values]
            means = [np.mean(values) for _, values in found]
            spreads = [np.std(values, ddof=1) if len(values) > 1 else 0 for _, values in found]
            places = [place for place, _ in found]
            axes.errorbar(places, means, spreads, fmt="o-", color=colour, capsize=3, label=method)
        oracle = _scores(own, "1.00", "oracle")
        if oracle:
            axes.axhline(np.mean(oracle), color="#888888", ls="--", label="oracle")
        plain(axes, "y").set_title(name, fontsize=10)
        axes.set_xticks([100 * float(x) for x in shares])
        axes.set_xlabel("share of the labels, %")
        axes.set_ylabel("mIoU, %" if name == "camvid" else "AP, %")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    figure.savefig(out / "methods.png", dpi=110)


if __name__ == "__main__":
    study(__doc__, "runs/methods", OUT, run=run, collect=collect, shown=(tables, draw, draw_scores))
