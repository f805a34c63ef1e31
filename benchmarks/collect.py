"""Tables and figures of docs/evidence.md and docs/downstream.md, from runs or from committed CSVs.

    python benchmarks/collect.py evidence --runs runs/evidence
    python benchmarks/collect.py downstream --runs runs/downstream
    python benchmarks/collect.py evidence       # from docs/evidence/*.csv alone

evidence: copies `results.csv` of each ablation of evidence/*.yaml to OUT/NAME.csv, and writes
OUT/resolutions.csv (every test size of every resolution fix). downstream: writes OUT/runs.csv (the
score of every run) and OUT/differences.csv from RUNS/NAME/ab.json. Both draw OUT/*.png and print
tables: mean ± standard deviation (of a sample) over seeds, percent of the held-out images.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import evidence_figures
from matplotlib.figure import Figure
from measure import Rows, less, parser, places, plain, read, show, spread, values, write

from ssld.report.plots import COLOURS

HERE = Path(__file__).parent
BLUE, ORANGE = COLOURS[:2]
TAUGHT = [("distill", "top1"), ("distill", "agreement1")]
LABELS = [("supervised", "top1")]
TWO, FIXED = [*TAUGHT, ("finetune", "top1")], [("fix", "top1")]
EVIDENCE = {
    "supervised": (["wrong labels", "schedule.lr"], LABELS),
    "unlabeled": (["grid.images"], TAUGHT),
    "longer-supervised": ([], LABELS),
    "longer-t": ([], TAUGHT),
    "label-noise": (["wrong labels"], TAUGHT),
    "epochs": (["grid.steps"], TWO),
    "weight-decay": (["optimizer.weight_decay"], TAUGHT),
    "teacher-accuracy": (["teacher"], [*TAUGHT, ("distill", "teacher_top1")]),
    "teacher-sees": (["teacher.batch_norm", "teacher_view"], TAUGHT),
    "autoaugment": (["student", "augment.policy"], TAUGHT),
    "clothing-supervised": (["schedule.lr"], [*LABELS, *FIXED]),
    "clothing-t": ([], TAUGHT),
    "clothing-recipe": (["finetune.targets"], [*TWO, *FIXED]),
    "clothing-fix": (["fix.train"], [*TAUGHT, *FIXED]),
}
"""Ablation: its axes, and (stage, metric) of each column."""
DOWNSTREAM = {
    "bccd-imagenet": ("BCCD, FCOS on MobileNetV2", "random", "ImageNet"),
    "camvid-imagenet": ("CamVid, FCN on MobileNetV2", "random", "ImageNet"),
    "bccd-students": ("BCCD, FCOS on MobileNetV3-small x0.5", "labels", "distilled"),
    "camvid-students": ("CamVid, FCN on MobileNetV3-small x0.5", "labels", "distilled"),
    "camvid-students-400": ("the same, 400 steps", "labels", "distilled"),
}
"""Folder of an A/B: what was trained, A and B in a word each."""


def evidence_copy(runs: Path, out: Path) -> None:
    """Copy the CSVs of the ablations that are finished."""
    sizes: list[dict[str, object]] = []
    for file in sorted((HERE / "evidence").glob("*.yaml")):
        results = runs / file.stem / "results.csv"
        if not results.is_file():
            print(f"{file.stem}: not run yet")
            continue
        if any(row["status"] != "done" for row in read(results)):
            print(f"{file.stem}: not finished")
        shutil.copyfile(results, out / f"{file.stem}.csv")
        for table in sorted((runs / file.stem).glob("cells/*/fix/resolutions.json")):
            sizes += _sizes(file.stem, table)
    if sizes:
        write(out / "resolutions.csv", sizes)


def evidence_tables(out: Path) -> None:
    for name, (axes, columns) in EVIDENCE.items():
        if rows := read(out / f"{name}.csv"):
            print(f"\n### {name}\n")
            head = [*axes, *(f"{stage} {metric}" for stage, metric in columns), "seeds"]
            show(head, _means(rows, axes, columns))
    print("\n### teacher-sees, differences\n")
    rows, norm, view = read(out / "teacher-sees.csv"), "teacher.batch_norm", "teacher_view"
    for x in ("same", "other"):
        here, there = ({norm: y, view: x} for y in ("batch", "eval"))
        _print_paired(rows, f"batch - eval statistics, {x} view", here, there)
    for x in ("eval", "batch"):
        here, there = ({norm: x, view: y} for y in ("same", "other"))
        _print_paired(rows, f"same - other view, {x} statistics", here, there)
    print("\n### resolutions\n")
    show(["ablation", "cell", "moment", "px", "top-1"], _resolutions(read(out / "resolutions.csv")))


def _sizes(name: str, file: Path) -> list[dict[str, object]]:
    table, cell = json.loads(file.read_text()), file.parent.parent.name
    return [
        {"ablation": name, "cell": cell, "moment": moment, "size": row["size"],
         "top1": row["top1"], "fixed_at": table["fixed_at"]}
        for moment in ("before", "after") for row in table[moment]
    ]  # fmt: skip


def _means(
    rows: Rows, axes: Sequence[str], columns: Sequence[tuple[str, str]]
) -> Iterator[list[str]]:
    """A row for each place on the axes."""
    for place in dict.fromkeys(tuple(row[axis] for axis in axes) for row in rows):
        where = dict(zip(axes, place, strict=True))
        cells = [values(rows, metric, stage=stage, **where) for stage, metric in columns]
        yield [*place, *map(spread, cells), str(len(cells[0]))]


def _print_paired(rows: Rows, name: str, here: dict[str, str], there: dict[str, str]) -> None:
    print(f"{name}: {less(rows, 'top1', here, there, digits=2)}, {len(values(rows, **here))} seeds")


def _resolutions(rows: Rows) -> Iterator[list[str]]:
    by_place: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        cell = row["cell"].rpartition(",seed")[0]
        place = (row["ablation"], cell, row["moment"], row["size"])
        by_place.setdefault(place, []).append(100 * float(row["top1"]))
    return ([*place, spread(result)] for place, result in by_place.items())


def downstream_copy(runs: Path, out: Path) -> None:
    """Write the CSVs of the A/Bs that are finished."""
    scores, differences = [], []
    for name in DOWNSTREAM:
        file = runs / name / "ab.json"
        if not file.is_file():
            print(f"{name}: not run yet")
            continue
        analysis = json.loads(file.read_text(encoding="utf-8"))
        sides = {backbone: side for side, backbone in analysis["backbones"].items()}
        for run in analysis["runs"]:
            row = {"ab": name, "metric": analysis["metric"], "side": sides[run["backbone"]]}
            scores.append(row | {key: run[key] for key in ("lr", "seed", "score")})
        for comparison, x in analysis["differences_b_less_a"].items():
            differences.append({"ab": name, "comparison": comparison, **_difference(x)})
    write(out / "runs.csv", scores)
    write(out / "differences.csv", differences)


def downstream_tables(out: Path) -> None:
    """Scores by backbone and rate, then differences."""
    scores, differences = (read(out / f"{x}.csv") for x in ("runs", "differences"))
    rows = []
    for name in places(scores, "ab"):
        title, a, b = DOWNSTREAM[name]
        cells = [title]
        for side, word in (("A", a), ("B", b)):
            of = {"ab": name, "side": side}
            means = [spread(values(scores, "score", lr=x, **of)) for x in ("same", "tuned")]
            cells += [word, *means]
        rows.append(cells)
    show(["", "A:", "same", "tuned", "B:", "same", "tuned"], rows)
    print()
    head = ["", "at", "B less A, points", "verdict", "B's steps to A's last score"]
    show(head, map(_row, differences))


def downstream_draw(out: Path) -> None:
    """Differences with their intervals, at both rates."""
    differences = read(out / "differences.csv")
    figure = Figure(figsize=(8.2, 0.32 * len(differences) + 1), layout="constrained")
    axes, labels = figure.subplots(), []
    shown = [row for row in differences if row["comparison"] in ("same", "tuned")]
    for place, row in enumerate(reversed(shown)):
        same = row["comparison"] == "same"
        colour = BLUE if same else ORANGE
        mean, low, high = _interval(row)
        axes.plot([low, high], [place, place], color=colour, lw=2.5)
        axes.plot(mean, place, "o", color=colour, ms=7)
        title, a, b = DOWNSTREAM[row["ab"]]
        labels.append(f"{title}\n{b} less {a}, {'same rate' if same else 'tuned'}")
    axes.set_yticks(range(len(shown)), labels, fontsize=8)
    axes.axvline(0, color="#57606a", lw=1)
    plain(axes, "x")
    axes.set_xlabel("points of AP or mean IoU, 95 % interval over seeds and images")
    figure.savefig(out / "differences.png", dpi=130)


def _difference(x: dict[str, Any]) -> dict[str, Any]:
    """A row of differences.csv from a comparison of ab.json."""
    ends = {
        f"{kind}_{end}": x[f"over_{kind}"][end]
        for kind in ("seeds", "images", "both")
        for end in ("low", "high")
    }
    times = x["to_last_score_of_a"] or {}
    a, b = ((times.get(side) or {}).get("step") for side in ("a", "b"))
    rates = {"a_lr": x["lr"][0], "b_lr": x["lr"][1], "seeds": len(x["seeds"])}
    means = {"images": x["images"], "mean": x["mean"], **ends}
    return {**rates, **means, "verdict": x["verdict"], "a_steps": a, "b_steps": b}


def _interval(row: dict[str, str]) -> list[float]:
    return [100 * float(row[key]) for key in ("mean", "both_low", "both_high")]


def _row(row: dict[str, str]) -> list[str]:
    mean, low, high = _interval(row)
    share, rates = "not reached", row["comparison"]
    if row["b_steps"]:
        share = f"{float(row['b_steps']) / float(row['a_steps']):.0%}"
    if rates == "best":
        rates = f"best ({row['a_lr']}, {row['b_lr']})"
    points = f"{mean:+.1f} [{low:+.1f} to {high:+.1f}]"
    return [DOWNSTREAM[row["ab"]][0], rates, points, row["verdict"], share]


def main() -> None:
    words = parser(__doc__)
    words.add_argument("what", choices=("evidence", "downstream"))
    words.add_argument("--runs", type=Path, help="where they ran; else OUT's CSVs are read")
    words.add_argument("--out", type=Path, help="by default docs/WHAT")
    given = words.parse_args()
    out = given.out or Path("docs") / given.what
    out.mkdir(parents=True, exist_ok=True)
    if given.what == "evidence":
        copy, tables, draw = evidence_copy, evidence_tables, evidence_figures.draw
    else:
        copy, tables, draw = downstream_copy, downstream_tables, downstream_draw
    if given.runs:
        copy(given.runs, out)
    tables(out)
    draw(out)


if __name__ == "__main__":
    main()
