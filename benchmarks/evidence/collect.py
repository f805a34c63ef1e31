"""Tables and figures of docs/evidence.md from the ablations beside this file.

    python benchmarks/evidence/collect.py --runs runs/evidence --out docs/evidence
    python benchmarks/evidence/collect.py --out docs/evidence     # from the committed CSVs alone

Copies each finished `results.csv` to OUT/NAME.csv, writes OUT/resolutions.csv (every test size of
every resolution fix), draws OUT/*.png and prints the tables: mean ± standard deviation (of a
sample) over seeds, percent of the held-out images.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from ssld.report.page import COLOURS

HERE = Path(__file__).parent
Rows = list[dict[str, str]]
BLUE, ORANGE, GREEN, PURPLE = COLOURS[:4]


def collect(runs: Path, out: Path) -> None:
    """Copy the CSVs of the ablations that are finished."""
    sizes = []
    for file in sorted(HERE.glob("*.yaml")):
        results = runs / file.stem / "results.csv"
        if not results.is_file():
            print(f"{file.stem}: not run yet")
            continue
        if any(row["status"] != "done" for row in read(results)):
            print(f"{file.stem}: not finished")
        shutil.copyfile(results, out / f"{file.stem}.csv")
        for table in sorted((runs / file.stem).glob("cells/*/fix/resolutions.json")):
            sizes += sizes_of(file.stem, table)
    if sizes:
        with (out / "resolutions.csv").open("w", newline="") as target:
            writer = csv.DictWriter(target, list(sizes[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(sizes)


def sizes_of(name: str, file: Path) -> list[dict[str, object]]:
    table = json.loads(file.read_text())
    return [
        {"ablation": name, "cell": file.parent.parent.name, "moment": moment, "size": row["size"],
         "top1": row["top1"], "fixed_at": table["fixed_at"]}
        for moment in ("before", "after") for row in table[moment]
    ]  # fmt: skip


def read(file: Path) -> Rows:
    """Empty where the ablation was not run."""
    if not file.is_file():
        return []
    with file.open(newline="") as source:
        return list(csv.DictReader(source))


def values(rows: Rows, column: str = "top1", **where: str) -> list[float]:
    """Percent, one for each seed."""
    found = [row for row in rows if all(row[key] == x for key, x in where.items())]
    return [100 * float(row[column]) for row in found if row[column]]


def told(found: Sequence[float]) -> str:
    if not found:
        return "-"
    spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.1f}{spread}"


def table(rows: Rows, axes: Sequence[str], columns: Sequence[tuple[str, str]]) -> None:
    """Print a row per place on the axes; columns are (stage, metric)."""
    heads = [f"{stage} {metric}" for stage, metric in columns]
    print("\n| " + " | ".join([*axes, *heads, "seeds"]) + " |")
    print("|---" * (len(axes) + len(heads) + 1) + "|")
    for place in dict.fromkeys(tuple(row[axis] for axis in axes) for row in rows):
        where = dict(zip(axes, place, strict=True))
        cells = [values(rows, metric, stage=stage, **where) for stage, metric in columns]
        print("| " + " | ".join([*place, *map(told, cells), str(len(cells[0]))]) + " |")


def paired(rows: Rows, name: str, here: dict[str, str], there: dict[str, str]) -> None:
    """Print the difference of two places, seed by seed, with its 95 % interval (Student's t)."""
    gaps = [a - b for a, b in zip(values(rows, **here), values(rows, **there), strict=True)]
    if len(gaps) < 2:
        return
    half = stats.t.ppf(0.975, len(gaps) - 1) * statistics.stdev(gaps) / len(gaps) ** 0.5
    mean = statistics.mean(gaps)
    print(f"{name}: {mean:+.2f} [{mean - half:+.2f} to {mean + half:+.2f}], {len(gaps)} seeds")


def panel(axes: Axes, title: str, ylabel: str = "top-1, %") -> None:
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_ylabel(ylabel)
    axes.grid(axis="y", color="#e6e8eb")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def bars(axes: Axes, named: dict[str, tuple[list[float], str]]) -> None:
    """Mean as a bar, deviation as a whisker, every seed as a dot."""
    named = {label: (found, colour) for label, (found, colour) in named.items() if found}
    for i, (found, colour) in enumerate(named.values()):
        mean = statistics.mean(found)
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        axes.bar(i, mean, 0.66, color=colour, alpha=0.85)
        axes.errorbar(i, mean, spread, color="#1b1f24", capsize=4, lw=1.2)
        axes.plot([i + 0.18] * len(found), found, "o", color="#1b1f24", ms=3)
        axes.annotate(
            f"{mean:.1f}", (i - 0.3, mean), (0, 4), textcoords="offset points", fontsize=9
        )
    axes.set_xticks(range(len(named)), list(named))


def line(axes: Axes, label: str, points: dict[float, list[float]], colour: str, style: str) -> None:
    points = {x: found for x, found in points.items() if found}  # the others are not run yet
    x = list(points)
    mean = [statistics.mean(found) for found in points.values()]
    spread = [statistics.stdev(f) if len(f) > 1 else 0.0 for f in points.values()]
    axes.errorbar(x, mean, spread, label=label, color=colour, ls=style, marker="o", ms=4, capsize=3)


def save(figure: Figure, out: Path, name: str) -> None:
    figure.savefig(out / f"{name}.png", dpi=110)


def draw_unlabeled(out: Path, data: Callable[[str], Rows]) -> None:
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[5, 3])
    clean = [row for row in data("supervised") if row["wrong labels"] == "0 %"]
    rates = dict.fromkeys(row["schedule.lr"] for row in clean)
    best = max((values(clean, **{"schedule.lr": lr}) for lr in rates), key=statistics.mean)
    found = {"labels of T": (best, ORANGE)}
    rows = data("unlabeled")
    for place in dict.fromkeys(row["grid.images"] for row in rows):
        found[place] = values(rows, **{"grid.images": place}), BLUE
    bars(left, found)
    panel(left, "CIFAR-100: 1,000 labels against no label")
    rows = data("clothing-supervised")
    rates = dict.fromkeys(row["schedule.lr"] for row in rows)
    given = [values(rows, stage="supervised", **{"schedule.lr": lr}) for lr in rates]
    first = data("clothing-recipe")
    bars(right, {
        "labels of T": (max(given, key=statistics.mean), ORANGE),
        "T alone": (values(data("clothing-t")), BLUE),
        "T + U": (values(first, stage="distill", **{"finetune.targets": "teacher"}), BLUE),
    })  # fmt: skip
    panel(right, "Photographs: 614 labels against none")
    save(figure, out, "unlabeled")


def draw_noise(out: Path, data: Callable[[str], Rows]) -> None:
    figure = Figure(figsize=(5.4, 3.8), layout="constrained")
    axes = figure.subplots()
    supervised, free = data("supervised"), data("label-noise")
    free = free + [
        {**r, "wrong labels": "0 %"} for r in data("unlabeled") if r["grid.images"] == "T alone"
    ]
    shares = {0: "0 %", 20: "20 %", 40: "40 %"}
    for rate, style in (("0.1", "dotted"), ("0.4", "solid"), ("0.8", "dashed")):
        points = {x: values(supervised, **{"wrong labels": name, "schedule.lr": rate})
                  for x, name in shares.items()}  # fmt: skip
        line(axes, f"trained on the labels, lr {rate}", points, ORANGE, style)
    points = {x: values(free, **{"wrong labels": name}) for x, name in shares.items()}
    line(axes, "label-free, the same images", points, BLUE, "solid")
    panel(axes, "Wrong labels")
    axes.set_xlabel("labels of T that are wrong, %")
    axes.set_xticks(list(shares))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    save(figure, out, "label-noise")


def draw_settings(out: Path, data: Callable[[str], Rows]) -> None:
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    steps, decay, teachers = figure.subplots(1, 3)
    rows = data("epochs")
    places = sorted({int(row["grid.steps"]) for row in rows})
    for stage, style in (("distill", "solid"), ("finetune", "dashed")):
        points = {x: values(rows, stage=stage, **{"grid.steps": str(x)}) for x in places}
        line(steps, "T + U, second stage" if style == "dashed" else "T + U", points,
             BLUE if style == "solid" else GREEN, style)  # fmt: skip
    alone = values(data("unlabeled"), **{"grid.images": "T alone"})
    line(steps, "T alone", {700: alone, 2800: values(data("longer-t"))}, PURPLE, "solid")
    clean = values(data("supervised"), **{"wrong labels": "0 %", "schedule.lr": "0.4"})
    longer = values(data("longer-supervised"))
    line(steps, "labels of T", {700: clean, 2800: longer}, ORANGE, "solid")
    steps.set_xscale("log", base=2)
    steps.set_xticks(places, [str(x) for x in places])
    steps.set_xlabel("steps of 64 images")
    steps.legend(frameon=False, fontsize=8)
    panel(steps, "Longer schedules")
    rows = data("weight-decay")
    column = "optimizer.weight_decay"
    names = dict.fromkeys(row[column] for row in rows)
    line(decay, "", {float(x): values(rows, **{column: x}) for x in names}, BLUE, "solid")
    decay.set_xscale("log")
    decay.set_ylim(15, 30)
    decay.set_xlabel("weight decay")
    panel(decay, "Weight decay")
    rows = data("teacher-accuracy")
    points = {}
    for place in dict.fromkeys(row["teacher"] for row in rows):
        one = [row for row in rows if row["teacher"] == place]
        points[100 * float(one[0]["teacher_top1"])] = values(one)
    line(teachers, "", dict(sorted(points.items())), BLUE, "solid")
    teachers.set_xlabel("top-1 of the teacher, %")
    panel(teachers, "Better teachers")
    save(figure, out, "settings")


def draw_resolution(out: Path) -> None:
    rows = read(out / "resolutions.csv")
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    panels = (
        ("clothing-recipe", "targets=teacher", 64, "trained at 64 px: classifier"),
        ("clothing-fix", "train=classifier,", 96, "trained at 96 px: classifier"),
        ("clothing-fix", "train=classifier_and_norm,", 96, "96 px: classifier and last norm"),
    )
    for axes, (name, part, trained_at, title) in zip(figure.subplots(1, 3), panels, strict=True):
        mine = [row for row in rows if row["ablation"] == name and part in row["cell"]]
        sizes = sorted({int(row["size"]) for row in mine})
        for moment, colour in (("before", BLUE), ("after", GREEN)):
            points = {float(x): values(mine, moment=moment, size=str(x)) for x in sizes}
            line(axes, f"{moment} the fix", points, colour, "solid")
        axes.axvline(trained_at, color="#6e7781", lw=1, ls="dotted")
        axes.set_xticks(sizes)
        axes.set_xlabel("test size, px")
        axes.legend(frameon=False, fontsize=8)
        panel(axes, title)
    save(figure, out, "resolution")


def draw_sees(out: Path, data: Callable[[str], Rows]) -> None:
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows, named = data("teacher-sees"), {}
    for view, colour in (("same", BLUE), ("other", ORANGE)):
        for norm in ("eval", "batch"):
            where = {"teacher_view": view, "teacher.batch_norm": norm}
            named[f"{view} view,\n{norm} statistics"] = values(rows, **where), colour
    bars(left, named)
    left.tick_params(axis="x", labelsize=8)
    panel(left, "What the teacher sees")
    rows, named = data("autoaugment"), {}
    for student in dict.fromkeys(row["student"] for row in rows):
        for policy, colour in (("none", BLUE), ("autoaugment", PURPLE)):
            where = {"student": student, "augment.policy": policy}
            label = "AutoAugment" if policy == "autoaugment" else "crop and flip"
            named[f"{student},\n{label}"] = values(rows, **where), colour
    bars(right, named)
    right.tick_params(axis="x", labelsize=8)
    panel(right, "AutoAugment")
    save(figure, out, "teacher-sees")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--runs", type=Path, help="where the ablations ran; else OUT's CSVs")
    parser.add_argument("--out", type=Path, default=Path("docs/evidence"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.runs:
        collect(given.runs, given.out)

    def data(name: str) -> Rows:
        return read(given.out / f"{name}.csv")

    taught = [("distill", "top1"), ("distill", "agreement1")]
    two, fixed = [*taught, ("finetune", "top1")], [("fix", "top1")]
    for name, axes, columns in (
        ("supervised", ["wrong labels", "schedule.lr"], [("supervised", "top1")]),
        ("unlabeled", ["grid.images"], taught),
        ("longer-supervised", [], [("supervised", "top1")]),
        ("longer-t", [], taught),
        ("label-noise", ["wrong labels"], taught),
        ("epochs", ["grid.steps"], two),
        ("weight-decay", ["optimizer.weight_decay"], taught),
        ("teacher-accuracy", ["teacher"], [*taught, ("distill", "teacher_top1")]),
        ("teacher-sees", ["teacher.batch_norm", "teacher_view"], taught),
        ("autoaugment", ["student", "augment.policy"], taught),
        ("clothing-supervised", ["schedule.lr"], [("supervised", "top1"), *fixed]),
        ("clothing-t", [], taught),
        ("clothing-recipe", ["finetune.targets"], [*two, *fixed]),
        ("clothing-fix", ["fix.train"], [*taught, *fixed]),
    ):
        if (given.out / f"{name}.csv").is_file():
            print(f"\n### {name}")
            table(data(name), axes, columns)
    print("\n### teacher-sees, differences\n")
    rows, norm, view = data("teacher-sees"), "teacher.batch_norm", "teacher_view"
    for x in ("same", "other"):
        paired(rows, f"batch - eval statistics, {x} view", {norm: "batch", view: x},
               {norm: "eval", view: x})  # fmt: skip
    for x in ("eval", "batch"):
        paired(rows, f"same - other view, {x} statistics", {norm: x, view: "same"},
               {norm: x, view: "other"})  # fmt: skip
    draw_unlabeled(given.out, data)
    draw_noise(given.out, data)
    draw_settings(given.out, data)
    draw_resolution(given.out)
    draw_sees(given.out, data)
    sizes = read(given.out / "resolutions.csv")
    print("\n### resolutions\n\n| ablation | cell | moment | px | top-1 |\n|---|---|---|---|---|")
    places = dict.fromkeys(
        (r["ablation"], r["cell"].rpartition(",seed")[0], r["moment"], r["size"]) for r in sizes
    )
    for name, cell, moment, size in places:
        one = [r for r in sizes if r["ablation"] == name and r["cell"].startswith(f"{cell},seed")]
        print(f"| {name} | {cell} | {moment} | {size} | "
              f"{told(values(one, moment=moment, size=size))} |")  # fmt: skip


if __name__ == "__main__":
    main()
