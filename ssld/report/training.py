"""What the reports of all training runs share: how the loss falls, where the time goes."""

from __future__ import annotations

import html
from collections.abc import Callable
from typing import Any

from ssld.common.attempt import attempt
from ssld.engine.start import Run
from ssld.engine.timing import SECTIONS
from ssld.report import page

Lines = list[dict[str, Any]]


def section(title: str, make: Callable[[], list[str]], note: str = "") -> str:
    """A part of a page: nothing where there are no figures, why where they cannot be made."""
    said = f'<p class="note">{html.escape(note)}</p>' if note else ""

    def made() -> str:
        figures = "".join(make())
        head = f"<h2>{html.escape(title)}</h2>{said}"
        return f'{head}<div class="row">{figures}</div>' if figures else ""

    return attempt(f"the section {title!r} of report.html", made)


def headline(run: Run, train: Lines) -> str:
    if not train:
        return "No step has been logged yet."
    last = train[-1]
    said = f"After {last['step']:,} of {run.total_steps:,} steps ({last['epoch']:.1f} epochs) the "
    said += f"loss is {last['loss']:.4f}"
    if last["unreadable"]:
        said += f"; {last['unreadable']} images could not be read (unreadable.jsonl)"
    return said + "."


def series_of(lines: Lines, names: dict[str, str]) -> dict[str, list[tuple[float, float]]]:
    """{key of a line: label} -> {label: [(step, value)]}."""
    return {
        label: [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        for key, label in names.items()
    }


def plots_of(lines: Lines, plots: list[tuple[str, dict[str, str], dict[str, Any]]]) -> list[str]:
    found = []
    for title, names, limits in plots:
        series = series_of(lines, names)
        if any(series.values()):
            found.append(page.curves(title, series, **limits))
    return found


def training_curves(train: Lines) -> list[str]:
    known = {"kind", "step", "epoch", "loss", "lr", "unreadable", "images_per_second"}
    known |= {"images_per_second_per_device", "seconds", "supervised_ratio"}
    first = train[0] if train else {}
    terms = {k: k for k in first if k not in known and not k.endswith("_percent")}
    return plots_of(train, [("loss terms", terms, {}), ("learning rate", {"lr": "lr"}, {"low": 0})])


def time_curves(train: Lines) -> list[str]:
    if not train:
        return []
    figure = page.new_figure()
    plot = page.axes(figure, "step")
    names = [
        name
        for name in (*SECTIONS, "other")
        if any(line.get(f"{name}_percent") for line in train)  # there may be no teacher
    ]
    shares = [[line[f"{name}_percent"] for line in train] for name in names]
    labels = [name.replace("_", " ") for name in names]
    steps = [line["step"] for line in train]
    if len(train) == 1:  # an area needs two points
        steps, shares = [0, steps[0]], [[x[0], x[0]] for x in shares]
    plot.stackplot(steps, shares, labels=labels, colors=page.COLOURS, alpha=0.85)
    plot.set_ylim(0, 100)
    plot.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    split = page.drawn("share of a step, %", figure)
    speed = {"images_per_second_per_device": "per device"}
    used = {"mfu_percent": "MFU, %"}
    ratio = {"supervised_ratio": "distillation : supervised"}
    return [
        split,
        *plots_of(
            train,
            [
                ("images per second and device", speed, {"low": 0}),
                ("model FLOPs utilisation, %", used, {"low": 0}),
                ("speed as a share of supervised training's", ratio, {"low": 0, "high": 1}),
            ],
        ),
    ]
