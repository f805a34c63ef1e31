"""The figures of docs/evidence.md; `collect.py` calls this."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measure import Rows, places, plain, read, values

from ssld.report.plots import COLOURS

BLUE, ORANGE, GREEN, PURPLE = COLOURS[:4]
Data = Callable[[str], Rows]
"""Name of an ablation -> the rows of its CSV."""


def draw(out: Path) -> None:
    """All five, from the CSVs in `out`, into `out`."""
    _save(out, "unlabeled", _unlabeled, 2, (11, 3.8), width_ratios=[5, 3])
    _save(out, "label-noise", _label_noise, 1, (5.4, 3.8))
    _save(out, "settings", _settings, 3, (12, 3.6))
    _save(out, "resolution", _resolution, 3, (12, 3.8))
    _save(out, "teacher-sees", _teacher_sees, 2, (11, 3.6))


def _save(out: Path, name: str, fill: Any, panels: int, size: tuple, **more: Any) -> None:
    figure = Figure(figsize=size, layout="constrained")
    fill(
        lambda ablation: read(out / f"{ablation}.csv"),
        *figure.subplots(1, panels, squeeze=False, **more)[0],
    )
    figure.savefig(out / f"{name}.png", dpi=110)


def _unlabeled(data: Data, cifar: Axes, photographs: Axes) -> None:
    clean = [row for row in data("supervised") if row["wrong labels"] == "0 %"]
    named = {"labels of T": (_at_best_rate(clean), ORANGE)}
    rows = data("unlabeled")
    named |= {x: (values(rows, **{"grid.images": x}), BLUE) for x in places(rows, "grid.images")}
    bars(cifar, named)
    panel(cifar, "CIFAR-100: 1,000 labels against no label")
    first = {"stage": "distill", "finetune.targets": "teacher"}
    bars(photographs, {
        "labels of T": (_at_best_rate(data("clothing-supervised"), stage="supervised"),
                        ORANGE),
        "T alone": (values(data("clothing-t")), BLUE),
        "T + U": (values(data("clothing-recipe"), **first), BLUE),
    })  # fmt: skip
    panel(photographs, "Photographs: 614 labels against none")


def _label_noise(data: Data, axes: Axes) -> None:
    supervised, shares = data("supervised"), {0: "0 %", 20: "20 %", 40: "40 %"}
    alone = [row for row in data("unlabeled") if row["grid.images"] == "T alone"]
    free = data("label-noise") + [{**row, "wrong labels": "0 %"} for row in alone]
    for rate, style in (("0.1", "dotted"), ("0.4", "solid"), ("0.8", "dashed")):
        where = {"schedule.lr": rate}
        points = {x: values(supervised, **{"wrong labels": y}, **where) for x, y in shares.items()}
        line(axes, points, ORANGE, f"trained on the labels, lr {rate}", style)
    points = {x: values(free, **{"wrong labels": y}) for x, y in shares.items()}
    line(axes, points, BLUE, "label-free, the same images")
    axes.set_xticks(list(shares))
    axes.set_ylim(bottom=0)
    panel(axes, "Wrong labels", "labels of T that are wrong, %")


def _settings(data: Data, steps: Axes, decay: Axes, teachers: Axes) -> None:
    rows = data("epochs")
    lengths = sorted({int(row["grid.steps"]) for row in rows})
    for stage, colour, label, style in (
        ("distill", BLUE, "T + U", "solid"),
        ("finetune", GREEN, "T + U, second stage", "dashed"),
    ):
        points = {x: values(rows, stage=stage, **{"grid.steps": str(x)}) for x in lengths}
        line(steps, points, colour, label, style)
    alone = values(data("unlabeled"), **{"grid.images": "T alone"})
    line(steps, {700: alone, 2800: values(data("longer-t"))}, PURPLE, "T alone")
    clean = values(data("supervised"), **{"wrong labels": "0 %", "schedule.lr": "0.4"})
    longer = values(data("longer-supervised"))
    line(steps, {700: clean, 2800: longer}, ORANGE, "labels of T")
    steps.set_xscale("log", base=2)
    steps.set_xticks(lengths, [str(x) for x in lengths])
    panel(steps, "Longer schedules", "steps of 64 images")
    rows, column = data("weight-decay"), "optimizer.weight_decay"
    points = {float(x): values(rows, **{column: x}) for x in places(rows, column)}
    line(decay, points, BLUE)
    decay.set_xscale("log")
    decay.set_ylim(15, 30)
    panel(decay, "Weight decay", "weight decay")
    rows, points = data("teacher-accuracy"), {}
    for place in places(rows, "teacher"):
        one = [row for row in rows if row["teacher"] == place]
        points[100 * float(one[0]["teacher_top1"])] = values(one)
    line(teachers, dict(sorted(points.items())), BLUE)
    panel(teachers, "Better teachers", "top-1 of the teacher, %")


def _resolution(data: Data, *panels: Axes) -> None:
    rows = data("resolutions")
    for axes, (name, part, trained_at, title) in zip(
        panels,
        (
            ("clothing-recipe", "targets=teacher", 64, "trained at 64 px: classifier"),
            ("clothing-fix", "train=classifier,", 96, "trained at 96 px: classifier"),
            ("clothing-fix", "train=classifier_and_norm,", 96,
             "96 px: classifier and last norm"),
        ),
        strict=True,
    ):  # fmt: skip
        mine = [row for row in rows if row["ablation"] == name and part in row["cell"]]
        sizes = sorted({int(row["size"]) for row in mine})
        for moment, colour in (("before", BLUE), ("after", GREEN)):
            points = {float(x): values(mine, moment=moment, size=str(x)) for x in sizes}
            line(axes, points, colour, f"{moment} the fix")
        axes.axvline(trained_at, color="#6e7781", lw=1, ls="dotted")
        axes.set_xticks(sizes)
        panel(axes, title, "test size, px")


def _teacher_sees(data: Data, views: Axes, policies: Axes) -> None:
    rows, norm = data("teacher-sees"), "teacher.batch_norm"
    bars(views, {
        f"{view} view,\n{x} statistics": (values(rows, teacher_view=view, **{norm: x}), colour)
        for view, colour in (("same", BLUE), ("other", ORANGE))
        for x in ("eval", "batch")
    })  # fmt: skip
    panel(views, "What the teacher sees")
    rows, policy = data("autoaugment"), "augment.policy"
    bars(policies, {
        f"{student},\n{label}": (values(rows, student=student, **{policy: x}), colour)
        for student in places(rows, "student")
        for x, label, colour in (("none", "crop and flip", BLUE),
                                 ("autoaugment", "AutoAugment", PURPLE))
    })  # fmt: skip
    panel(policies, "AutoAugment")
    for axes in (views, policies):
        axes.tick_params(axis="x", labelsize=8)


def line(
    axes: Axes, points: dict[float, list[float]], colour: str, label: str = "", style: str = "solid"
) -> None:
    """Means with deviations; points without a run are left out."""
    points = {x: result for x, result in points.items() if result}
    means = [statistics.mean(result) for result in points.values()]
    errors = [statistics.stdev(f) if len(f) > 1 else 0.0 for f in points.values()]
    axes.errorbar(
        list(points), means, errors,
        label=label, color=colour, ls=style, marker="o", ms=4, capsize=3,
    )  # fmt: skip


def bars(axes: Axes, named: dict[str, tuple[list[float], str]]) -> None:
    """{label: (values, colour)}: mean as a bar, deviation as a whisker, every seed as a dot."""
    named = {label: (result, colour) for label, (result, colour) in named.items() if result}
    for i, (result, colour) in enumerate(named.values()):
        mean = statistics.mean(result)
        error = statistics.stdev(result) if len(result) > 1 else 0.0
        axes.bar(i, mean, 0.66, color=colour, alpha=0.85)
        axes.errorbar(i, mean, error, color="#1b1f24", capsize=4, lw=1.2)
        axes.plot([i + 0.18] * len(result), result, "o", color="#1b1f24", ms=3)
        at = (i - 0.3, mean)
        axes.annotate(f"{mean:.1f}", at, (0, 4), textcoords="offset points", fontsize=9)
    axes.set_xticks(range(len(named)), list(named))


def panel(axes: Axes, title: str, xlabel: str = "") -> None:
    plain(axes)
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_ylabel("top-1, %")
    axes.set_xlabel(xlabel)
    if axes.get_legend_handles_labels()[1] and xlabel:
        axes.legend(frameon=False, fontsize=8)


def _at_best_rate(rows: Rows, **where: str) -> list[float]:
    rates = [values(rows, **{"schedule.lr": x}, **where) for x in places(rows, "schedule.lr")]
    return max(rates, key=statistics.mean)
