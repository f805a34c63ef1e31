"""`ssld compare A B ...`: what differs between runs, finished or not, and what came of it."""

from __future__ import annotations

import json
import math
import statistics
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ssld.common.files import reading, write_atomically
from ssld.common.metrics import CHANCE, COMPARED, METRICS, WITHOUT_CHANCE, too_weak
from ssld.common.paths import check_file
from ssld.common.text_table import ABSENT, CELL, text_table
from ssld.compare.config import CompareConfig
from ssld.compare.report import Comparison, Results, write_report
from ssld.compare.seen_run import SeenRun, open_runs
from ssld.health.resolution import describe_choice
from ssld.health.verdict import is_not_learning, level

Column = tuple[str, Callable[[Any], str], Callable[..., Any] | None]
"""Heading, how a value is shown, and max or min where one is better than the other."""
COLUMNS: dict[str, Column] = {
    "progress": ("steps", str, None),
    "epochs": ("epochs", "{:.2f}".format, None),
    "loss": ("loss", METRICS["divergence"].show, min),
    **{
        f"{key}_{which}": (f"{METRICS[key].label} {which}", METRICS[key].show, METRICS[key].best)
        for key in COMPARED
        for which in ("best", "last")
    },
    **{
        f"{chance}_last": (f"chance of {METRICS[key].label}", METRICS[key].show, None)
        for key, chance in CHANCE.items()
    },
    "entropy_student": ("entropy, nats", "{:.3f}".format, None),
    "images_per_second": ("images per second", "{:,.0f}".format, max),
    "data_wait_percent": ("data wait, %", "{:.1f}".format, min),
    "hours": ("hours", "{:.2f}".format, None),
    "exported_step": ("exported step", "{:,}".format, None),
}


def differences(runs: Sequence[SeenRun]) -> dict[str, dict[str, Any]]:
    """{setting: {label: value}} of what is not the same in all runs; a run without it is left out.
    In the order of the settings."""
    result = {}
    for key in dict.fromkeys(key for run in runs for key in run.settings):
        if any(run.settings.get(key, ...) != runs[0].settings.get(key, ...) for run in runs):
            result[key] = {run.label: run.settings[key] for run in runs if key in run.settings}
    return result


def summary(run: SeenRun) -> dict[str, Any]:
    """What came of a run, by the keys of `COLUMNS` and a few more; None where it is not known."""

    def last(kind: str, key: str) -> Any:
        return next(reversed(run.values(kind, key)), None)

    line, steps = run.lines[-1], run.facts.get("steps")
    result: dict[str, Any] = {"label": run.label, "path": run.path}
    result |= {"step": line["step"], "steps": steps, "epochs": line["epoch"]}
    result["progress"] = f"{line['step']:,}/{f'{steps:,}' if steps else '?'}"
    result |= {"loss": last("train", "loss"), "verdict": last("eval", "verdict")}
    result |= _learned(run, result["verdict"])
    counted = run.counted()
    for key in COMPARED:
        finite = [x[key] for x in counted if x.get(key) is not None and math.isfinite(x[key])]
        result[f"{key}_best"] = METRICS[key].best(finite, default=None)
        result[f"{key}_last"] = last("eval", key)
    for key in CHANCE.values():
        result[f"{key}_last"] = last("eval", key)
    resolution = run.facts.get("resolution")
    if resolution:  # what it exported was evaluated at another size than in training
        for key in COMPARED:
            result[f"{key}_best"] = result[f"{key}_last"] = resolution["metrics"].get(key)
        for key in CHANCE.values():
            result[f"{key}_last"] = resolution["metrics"].get(key)
        message = describe_choice(resolution)
        result["verdict"] = f"{result['verdict']}; {message}" if result["not_learning"] else message
    result["entropy_student"] = last("eval", "entropy_student")
    for key in ("images_per_second", "data_wait_percent"):
        values = run.values("train", key)
        result[key] = statistics.median(values) if values else None
    exported = run.facts.get("exported") or {}
    hours = sum(run.values("train", "seconds")) / 3600
    return result | {"hours": hours, "exported_step": exported.get("step")}


def _learned(run: SeenRun, verdict: str | None) -> dict[str, Any]:
    """Whether its last verdict, or what is known of its exported student, says that it did not
    learn, and how it stands against chance."""
    symptoms = (run.facts.get("exported") or {}).get("symptoms")
    lines = [line for line in run.lines if line["kind"] == "eval"]
    bad = bool(symptoms) or is_not_learning(verdict)
    return {"not_learning": bad, "standing": level(lines[-1]) if lines else ""}


def warnings(runs: Sequence[SeenRun], differ: dict[str, Any]) -> dict[str, set[str]]:
    """{sentence: metrics that do not compare between these runs, and have no best}."""
    result: dict[str, set[str]] = {}
    if "val_sha256" in differ:
        message = "The held-out images differ (val_sha256): evaluations are not on the same images."
        result[message] = set(COMPARED)
    if len(set(differ.get("teacher_sha256", {}).values())) > 1:
        message = "The teachers differ: each run is measured against its own."
        result[message] = {"loss", "agreement1", "agreement5", "divergence", "feature_agreement"}
    losses = ("loss.name", "loss.temperature", "loss.weight", "features.weight", "features.loss")
    losses += ("label_smoothing", "mixup", "cutmix")
    which = ", ".join(key for key in losses if key in differ)
    if which:
        result[f"The losses differ ({which}): their values do not compare."] = {
            "loss",
            "divergence",
        }
    return result


def weak(summaries: Sequence[dict[str, Any]]) -> dict[str, set[str]]:
    """{sentence: metric} of what no run has learned enough of to be better than another."""
    result: dict[str, set[str]] = {}
    for key in WITHOUT_CHANCE:
        scores = [run[f"{key}_best"] for run in summaries if run[f"{key}_best"] is not None]
        if len(scores) > 1 and (caution := too_weak(scores)):
            result[f"{METRICS[key].label}: {caution}."] = {key}
    return result


def no_results(summaries: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence for each run that has learned nothing."""
    return [
        f"{run['label']} is not learning: its evaluations are no result, and none of them is a best"
        + (f" ({run['standing']})." if run["standing"] else ".")
        for run in summaries
        if run["not_learning"]
    ]


def _results(summaries: Sequence[dict[str, Any]], incomparable: set[str]) -> Results:
    """Those columns of `COLUMNS` that some run has. Evaluations of a run that has learned nothing
    are shown and never the best."""
    result = {}
    for key, (head, shown, better) in COLUMNS.items():
        name = key.removesuffix("_best").removesuffix("_last")
        texts = [ABSENT if run[key] is None else shown(run[key]) for run in summaries]
        counts = [not (name in COMPARED and run["not_learning"]) for run in summaries]
        rated = [run[key] for run, x in zip(summaries, counts, strict=True) if x]
        known = [value for value in rated if value is not None]
        best = None
        if better and name not in incomparable and len({*texts} - {ABSENT}) > 1:
            best = shown(better(filter(math.isfinite, known), default=math.nan))
        if any(text != ABSENT for text in texts):
            result[head] = [(x, x == best and c) for x, c in zip(texts, counts, strict=True)]
    return result


def _shown(key: str, value: Any) -> str:
    """A setting as one would type it."""
    if isinstance(value, str):
        return value[:12] if key.endswith("_sha256") else value
    if isinstance(value, list) and value and all(isinstance(x, str) for x in value):
        return ", ".join(value)
    return json.dumps(value, ensure_ascii=False)


def _print(result: Comparison) -> None:
    labels = [run.label for run in result.runs]
    table = text_table(["setting", *labels], result.settings) if result.settings else "(none)"
    print(f"config differences\n\n{table}\n\nresults\n")
    rows = [
        [head, *("*" * best + text for text, best in row)] for head, row in result.results.items()
    ]
    short = [textwrap.shorten(message, 2 * CELL, placeholder=" ...") for message in result.verdicts]
    print(text_table(["result", *labels], [*rows, ["verdict", *short]]))
    print("* best of its row, where values compare")
    for sentence in result.warnings:
        print(f"\nwarning: {sentence}")


def compare(config: CompareConfig) -> None:
    """Print both tables, write the page to `config.out` and the values to `config.json`.

    Raises:
        InputError: not a run folder, or nothing logged in it yet; no place to write to.
    """
    check_file("out", config.out, "page")
    check_file("json", config.json, "comparison")
    with reading("one of the runs", "leave out the one whose config.yaml or run.json was changed"):
        runs = open_runs(config.runs)
        differ, summaries = differences(runs), [summary(run) for run in runs]
        warned = warnings(runs, differ)
        settings = [
            [key, *(_shown(key, x[run.label]) if run.label in x else ABSENT for run in runs)]
            for key, x in differ.items()
        ]
        warned |= weak(summaries)
        results = _results(summaries, set().union(*warned.values()))
        verdicts = [run["verdict"] or ABSENT for run in summaries]
        result = Comparison(runs, settings, results, verdicts, [*no_results(summaries), *warned])
        if config.json:
            written = {"differences": differ, "runs": summaries}
            write_atomically(Path(config.json), json.dumps(written, indent=2) + "\n")
        write_report(Path(config.out), result)
        _print(result)
    print(f"\n{config.out}")
