"""What the reports of all training runs share: how the loss falls, where the time goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from ssld.common.files import read_object
from ssld.common.packages import versions
from ssld.engine.start import Run
from ssld.engine.timing import SECTIONS
from ssld.report import page, plots

Lines = list[dict[str, Any]]
Plots = Sequence[tuple[str, dict[str, str], dict[str, Any]]]
"""(title, {key of a line of metrics.jsonl: label}, limits of the plot)."""
NO_TERMS = {
    "kind", "step", "epoch", "loss", "lr", "unreadable", "images_per_second",
    "images_per_second_per_device", "seconds", "supervised_ratio",
}  # fmt: skip
"""Keys of a training line that are no term of the loss."""
KIND = "loss_"
"""Before the name of a kind of images (`ssld.engine.task.Task.groups`)."""
FACTOR = "factor_"
"""Before what is no loss, but what one is multiplied by (`ssld.engine.task.Task.logged`)."""
RELOAD_SECONDS = 30
"""After which a browser looks again at the page of a run that has not ended."""
SHARE = {"low": 0, "high": 1.02}
"""Limits of a plot of shares."""


def write_training_report(run: Run, template: str, **values: Any) -> None:
    """Write `report.html` into the run folder, from its files and `values`.

    Args:
        template: one that extends `ssld/report/training.html`.
    """
    out, train = run.folder.path, run.folder.history.training()
    page.write_page(
        out / "report.html",
        template,
        title=out.resolve().name,
        headline=_headline(run, train),
        reload_seconds=0 if "exported" in read_object(out / "run.json", "") else RELOAD_SECONDS,
        training_curves=lambda: _training_curves(train),
        time_curves=lambda: _time_curves(train),
        settings=(out / "config.yaml").read_text(),
        versions=sorted(versions().items()),
        **values,
    )


def plots_of(lines: Lines, wanted: Plots) -> list[Markup]:
    """Plots over steps, but for those of which no line has a value."""
    figures = []
    for title, names, limits in wanted:
        series = {
            label: [(line["step"], line[key]) for line in lines if line.get(key) is not None]
            for key, label in names.items()
        }
        if any(series.values()):
            figures.append(page.plot(title, plots.curves(series, **limits)))
    return figures


def _headline(run: Run, train: Lines) -> str:
    if not train:
        return "No step has been logged yet."
    last = train[-1]
    text = f"After {last['step']:,} of {run.total_steps:,} steps ({last['epoch']:.1f} epochs) the "
    text += f"loss is {last['loss']:.4f}"
    if last["unreadable"]:
        text += f"; {last['unreadable']} images could not be read (unreadable.jsonl)"
    return f"{text}."


def _training_curves(train: Lines) -> list[Markup]:
    first = train[0] if train else {}
    kinds, factors = (
        {k: k.removeprefix(start) for x in train for k in x if k.startswith(start)}
        for start in (KIND, FACTOR)
    )
    others = NO_TERMS | kinds.keys() | factors.keys()
    terms = {k: k for k in first if k not in others and not k.endswith("_percent")}
    wanted: Plots = [
        ("loss terms", terms, {}),
        ("loss by kind of image", kinds, {}),
        ("what losses are multiplied by", factors, {}),
        ("learning rate", {"lr": "lr"}, {"low": 0}),
    ]
    return plots_of(train, wanted)


def _time_curves(train: Lines) -> list[Markup]:
    if not train:
        return []
    figure = plots.new_figure()
    plot = plots.axes(figure, "step")
    names = [
        name
        for name in (*SECTIONS, "other")
        if any(line.get(f"{name}_percent") for line in train)  # there may be no teacher
    ]
    shares = [[line[f"{name}_percent"] for line in train] for name in names]
    steps = [line["step"] for line in train]
    if len(train) == 1:  # an area needs two points
        steps, shares = [0, steps[0]], [[x[0], x[0]] for x in shares]
    labels = [name.replace("_", " ") for name in names]
    plot.stackplot(steps, shares, labels=labels, colors=plots.COLOURS, alpha=0.85)
    plot.set_ylim(0, 100)
    plot.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    speed = {"images_per_second_per_device": "per device"}
    ratio = {"supervised_ratio": "distillation : supervised"}
    over_steps: Plots = [
        ("images per second and device", speed, {"low": 0}),
        ("model FLOPs utilisation, %", {"mfu_percent": "MFU, %"}, {"low": 0}),
        ("speed as a share of supervised training's", ratio, {"low": 0, "high": 1}),
    ]
    return [page.plot("share of a step, %", figure), *plots_of(train, over_steps)]
