"""selftrain.json and report.html: teacher, baseline and student side by side."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from downstream.ab.statistics import CONFIDENCE, RESAMPLES, Interval
from downstream.dense.report import pictures, sheet
from downstream.selftrain.outcome import Difference, Outcome, Stage
from downstream.selftrain.recipe import LABELS, TASKS, Selftrain
from ssld.common.metrics import METRICS
from ssld.common.text_table import ABSENT, text_table
from ssld.report import page, plots

HEAD = ("stage", "score, %", "95 % interval", "steps", "human images", "generated images")
DIFFERENCES = ("difference", "points", "95 % interval", "verdict")
NOTE = (
    "Each network at the step that it exported, on the same held-out images. Intervals are over "
    f"these images ({CONFIDENCE:.0%} of {RESAMPLES} draws of them, the same for both of a pair); "
    "one run of each says nothing of other seeds, whose spread may be larger: train several."
)

CHOSEN = (
    " Each network counts at its best evaluation (checkpoint.best), which these very images chose."
)


def as_json(outcome: Outcome) -> dict[str, Any]:
    """selftrain.json"""
    return {
        "task": outcome.task,
        "metric": outcome.key,
        "file": outcome.file,
        "held_out_images": outcome.images,
        "stages": {stage.name: _stage_as_json(stage) for stage in outcome.stages},
        "differences": [
            {**asdict(x), "mean": _finite(x.mean), "verdict": x.verdict}
            for x in outcome.differences
        ],
        "warning": outcome.warning,
        "labels": {
            key: outcome.labels.get(key) for key in ("images", "instances", "classes", "warnings")
        },
    }


def _stage_as_json(stage: Stage) -> dict[str, Any]:
    return {
        "folder": str(stage.folder),
        "score": _finite(stage.result.score) if stage.result else None,
        "interval": stage.interval and asdict(stage.interval),
        "steps": stage.steps,
        "human_images": stage.human,
        "generated_images": stage.generated,
        "problem": stage.problem,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def rows(outcome: Outcome) -> list[list[str]]:
    """A row of HEAD for each stage."""
    return [_row(stage) for stage in outcome.stages]


def _row(stage: Stage) -> list[str]:
    if stage.result is None:
        return [stage.name, *[ABSENT] * (len(HEAD) - 1)]
    interval = stage.interval
    between = f"{100 * interval.low:.2f} to {100 * interval.high:.2f}" if interval else ABSENT
    counts = [f"{stage.human:,}", f"{stage.generated:,}" if stage.generated else ABSENT]
    return [stage.name, f"{100 * stage.result.score:.2f}", between, f"{stage.steps:,}", *counts]


def difference_rows(differences: Sequence[Difference]) -> list[list[str]]:
    """A row of DIFFERENCES for each."""
    return [
        [f"{x.of} minus {x.less}", f"{100 * x.mean:+.2f}", _points(x.interval), _verdict(x)]
        for x in differences
    ]


def _verdict(difference: Difference) -> str:
    """And what else the two differ in than the method, and why it may mean nothing."""
    steps, caution = difference.steps, difference.caution
    unequal = f" (trained for {steps[0]:,} and {steps[1]:,} steps)" if steps else ""
    doubt = f", but {caution}" if caution else ""
    return f"{difference.verdict}{unequal}{doubt}"


def _points(interval: Interval | None) -> str:
    return f"{100 * interval.low:+.2f} to {100 * interval.high:+.2f}" if interval else ABSENT


def summary(outcome: Outcome) -> str:
    """For a terminal."""
    label = METRICS[outcome.key].label
    head = [HEAD[0], f"{label}, %", *HEAD[2:]]
    tables = [text_table(head, rows(outcome))]
    if outcome.differences:
        tables.append(text_table(DIFFERENCES, difference_rows(outcome.differences)))
    return "\n\n".join(tables)


def headline(outcome: Outcome) -> list[str]:
    """What came of it, a sentence for each difference."""
    label = METRICS[outcome.key].label
    return [
        f"Student minus {x.less}: "
        + ("" if x.flaw else f"{100 * x.mean:+.2f} points of {label}, ")
        + f"{_verdict(x)}."
        for x in outcome.differences
    ] or ["The teacher's run is not known, so that the student is held against nothing."]


def heading(outcome: Outcome, recipe: Selftrain) -> str:
    """What was trained: `Self-training of fcos on resnet50 with 118,287 unlabeled images`."""
    student = recipe.configs["student"]
    head, backbone = (getattr(student, section) for section in TASKS[recipe.task])
    images = (outcome.labels.get("images") or {}).get("annotated")
    unlabeled = "unlabeled images" if images is None else f"{images:,} unlabeled images"
    return f"Self-training of {head.name} on {backbone.name} with {unlabeled}"


def write_report(outcome: Outcome, recipe: Selftrain) -> Markup | None:
    """Write report.html."""
    label = METRICS[outcome.key].label
    page.write_page(
        recipe.out / "report.html",
        "downstream/selftrain/report.html",
        title=heading(outcome, recipe),
        headline=headline(outcome),
        head=[HEAD[0], f"{label}, %", *HEAD[2:]],
        rows=rows(outcome),
        difference_head=DIFFERENCES,
        differences=difference_rows(outcome.differences),
        note=NOTE + CHOSEN * outcome.chosen,
        curves=(lambda: [_curves(outcome)]) if _several_evaluations(outcome) else None,
        pictures=(lambda: list(_pictures(outcome))) if any(_sheets(outcome).values()) else None,
        label_rows=label_rows(outcome.labels),
        warnings=[
            *([outcome.warning] if outcome.warning else []),
            *(outcome.labels.get("warnings") or []),
        ],
        links=_links(outcome, recipe),
    )


def _links(outcome: Outcome, recipe: Selftrain) -> list[tuple[str, str]]:
    """(name, address) of the stages' reports that there are."""
    places = {**{x.name: x.folder for x in outcome.stages}, LABELS: recipe.out / LABELS}
    return [
        (name, f"{os.path.relpath(folder, recipe.out)}/report.html")
        for name, folder in places.items()
        if (folder / "report.html").is_file()
    ]


def _sheets(outcome: Outcome) -> dict[str, list[Path]]:
    """Of the two that are to be looked at side by side."""
    names = [stage.name for stage in outcome.stages]
    compared = ("baseline" if "baseline" in names else "teacher", "student")
    return {x.name: pictures(x.folder) for x in outcome.stages if x.name in compared}


def _pictures(outcome: Outcome) -> Iterator[Markup]:
    for name, found in _sheets(outcome).items():
        if found:
            yield sheet(found[0], f"{name}, ")


def _several_evaluations(outcome: Outcome) -> bool:
    return any(len(stage.result.curve) > 1 for stage in outcome.stages if stage.result)


def _curves(outcome: Outcome) -> Markup:
    """The score over steps."""
    series = {
        stage.name: [(point.step, point.score) for point in stage.result.curve]
        for stage in outcome.stages
        if stage.result
    }
    return page.plot(METRICS[outcome.key].label, plots.curves(series, low=0))


def label_rows(manifest: dict[str, Any]) -> list[list[str]]:
    """What was labeled, by class: a head and rows."""
    pixels = manifest.get("pixels")
    if pixels:
        total = max(1, sum(pixels.values()))
        return [["class", "share of pixels"],
                *([name, f"{count / total:.1%}"] for name, count in pixels.items())]  # fmt: skip
    head = ["class", "in the labeled set", "wanted", "generated", "threshold"]
    return [head, *(_class_row(x) for x in manifest.get("classes") or ())]


def _class_row(entry: dict[str, Any]) -> list[str]:
    counts = [_count(entry.get(key)) for key in ("labeled", "wanted", "kept")]
    score = entry.get("score")
    return [entry["name"], *counts, ABSENT if score is None else f"{score:.3f}"]


def _count(value: int | None) -> str:
    return ABSENT if value is None else f"{value:,}"
