"""`report.html` of a recipe: what each stage did, on one page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ssld.common.metrics import METRICS, images_of
from ssld.compare.seen_run import exported_metrics
from ssld.distill.report import resolutions
from ssld.engine.run_folder import read_lines
from ssld.health.resolution import describe_choice
from ssld.health.verdict import is_not_learning, level, shown_verdict
from ssld.report import page, plots

COLUMNS = ("top1", "agreement1", "divergence", "feature_agreement", "knn", "linear")
RESULTS = ("top1", "agreement1", "feature_agreement")
HEAD = ["stage", *(METRICS[key].label for key in COLUMNS), "images", "px"]
HEAD += ["steps", "epochs", "peak lr", "hours", "targets"]
Seen = tuple[dict[str, Any], list[dict[str, Any]]]
"""run.json and the lines of metrics.jsonl."""


def write_report(out: Path, stages: Sequence[str]) -> None:
    """Write `out/report.html` from the run folders of the stages, all finished."""
    seen = {stage: _read(out / stage) for stage in stages}
    fixed = seen["fix"][0]["resolution"] if "fix" in seen else None
    page.write_page(
        out / "report.html",
        "ssld/recipe/report.html",
        title=out.resolve().name,
        headline=_headline(seen),
        verdicts=[shown_verdict(_evaluations(x), stage) for stage, (_, x) in seen.items()],
        head=HEAD,
        rows=[_row(stage, *run) for stage, run in seen.items()],
        stages=stages,
        curves=_curves(seen),
        resolutions=resolutions(out / "fix", fixed),
    )


def _read(folder: Path) -> Seen:
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return facts, read_lines(folder / "metrics.jsonl")


def _evaluations(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["kind"] == "eval"]


def _not_learning(facts: dict[str, Any], lines: list[dict[str, Any]]) -> bool:
    """By its last verdict, or by the evaluation of what it exported."""
    verdicts = [line["verdict"] for line in _evaluations(lines)]
    return bool(facts["exported"].get("symptoms")) or is_not_learning((verdicts or [""])[-1])


def _headline(seen: dict[str, Seen]) -> str:
    """What came of it; numbers of the same images only, and none of stages that learned nothing."""
    bad = [stage for stage, run in seen.items() if _not_learning(*run)]
    if bad:
        metrics = exported_metrics(*seen[bad[0]])
        at = f" ({bad[0]}: {level(metrics)})" if level(metrics) else ""
        return f"Not learning: {', '.join(bad)}{at}. The numbers below are no result."
    metrics = {stage: exported_metrics(*run) for stage, run in seen.items() if stage != "fix"}
    key = next((k for k in RESULTS if all(k in x for x in metrics.values())), "agreement1")
    shares = [f"{stage} {x[key]:.1%}" for stage, x in metrics.items() if key in x]
    images = {round(images_of(key, x) or 0) for x in metrics.values() if key in x}
    on = f" on {images.pop():,} held-out images" if len(images) == 1 else ""
    text = "No evaluation."
    if shares:
        text = f"{METRICS[key].label.capitalize()}: {', then '.join(shares)}{on}."
    return (
        f"{text} The fix: {describe_choice(seen['fix'][0]['resolution'])}."
        if "fix" in seen
        else text
    )


def _row(stage: str, facts: dict[str, Any], lines: list[dict[str, Any]]) -> list[str]:
    metrics = exported_metrics(facts, lines)
    shown = [METRICS[key].show(metrics[key]) if key in metrics else "–" for key in COLUMNS]
    hours = sum(x["seconds"] for x in lines if x["kind"] == "train") / 3600
    size = (facts.get("resolution") or {}).get("chosen") or facts["student"]["input_size"]
    targets = "teacher" if facts["teacher_sha256"] else "labels"
    epochs = f"{lines[-1]['epoch']:.1f}" if lines else "–"
    images = f"{round(metrics['images']):,}" if "images" in metrics else "–"
    took = [f"{facts['steps']:,}", epochs, f"{facts['peak_lr']:.4g}", f"{hours:.2f}"]
    return [stage, *shown, images, str(size), *took, targets]


def _curves(seen: dict[str, Seen]) -> list[Markup]:
    """Every metric over all steps, a line per stage, each beginning where the last one ended."""
    figures = []
    for key in COLUMNS:
        series, offset = {}, 0
        for stage, (facts, lines) in seen.items():
            known = [x for x in _evaluations(lines) if x.get(key) is not None]
            series[stage] = [(offset + x["step"], x[key]) for x in known]
            offset += facts["steps"]
        if any(series.values()):
            figures.append(page.plot(METRICS[key].label, plots.curves(series)))
    return figures
