"""`report.html` of a recipe: what each stage did, on one page."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssld.common.metrics import METRICS, images_of
from ssld.distill.report_resolutions import figures
from ssld.engine.run_folder import read_lines
from ssld.health.resolution import said_of
from ssld.health.verdict import is_not_learning, level
from ssld.health.verdict_text import paragraph
from ssld.report import page

COLUMNS = ("top1", "agreement1", "divergence", "knn", "linear")


def write_report(out: Path, stages: Sequence[str]) -> None:
    """Write `out/report.html` from the run folders of the stages, all finished."""
    seen = {stage: _read(out / stage) for stage in stages}
    body = [
        f"<h1>{html.escape(out.resolve().name)}</h1>",
        f'<p class="lead">{html.escape(_headline(seen))}</p>',
        *(paragraph(_evaluations(lines), stage) for stage, (_, lines) in seen.items()),
        '<p class="note">Each stage at the step whose student it exported, on held-out images; the '
        "resolution fix at the size that it chose, on the images that did not choose it; its "
        "curves are of those that choose, at the size that it trains at.</p>",
        page.table([_row(out, stage, *found) for stage, found in seen.items()], HEAD),
        f"<p>{' · '.join(_link(stage) for stage in stages)}</p>",
        "<h2>Held-out images, stage after stage</h2>",
        f'<div class="row">{"".join(_curves(seen))}</div>',
    ]
    if "fix" in seen:
        table = json.loads((out / "fix" / "resolutions.json").read_text(encoding="utf-8"))
        body += ["<h2>Resolution</h2>", *figures(table, seen["fix"][0]["resolution"])]
    page.write_page(out / "report.html", out.resolve().name, body)


HEAD = ["stage", *(METRICS[key].label for key in COLUMNS), "images", "px"]
HEAD += ["steps", "epochs", "peak lr", "hours", "targets"]
Seen = tuple[dict[str, Any], list[dict[str, Any]]]
"""run.json and the lines of metrics.jsonl."""


def _read(folder: Path) -> Seen:
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return facts, read_lines(folder / "metrics.jsonl")


def at_export(facts: dict[str, Any], lines: list[dict[str, Any]]) -> dict[str, Any]:
    """The metrics of the exported student, after a fix those at the size that it chose."""
    if facts.get("resolution"):
        return facts["resolution"]["metrics"]
    step = facts["exported"]["step"]
    line = next((x for x in lines if x["kind"] == "eval" and x["step"] == step), {})
    return line


def _evaluations(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line for line in lines if line["kind"] == "eval"]


def _not_learning(facts: dict[str, Any], lines: list[dict[str, Any]]) -> bool:
    """By its last verdict, or by the evaluation of what it exported."""
    evaluations = _evaluations(lines)
    symptoms = facts["exported"].get("symptoms")
    return bool(symptoms) or bool(evaluations) and is_not_learning(evaluations[-1]["verdict"])


def _headline(seen: dict[str, Seen]) -> str:
    """What came of it; numbers of the same images only, and none of stages that learned nothing."""
    bad = [stage for stage, found in seen.items() if _not_learning(*found)]
    if bad:
        metrics = at_export(*seen[bad[0]])
        at = f" ({bad[0]}: {level(metrics)})" if level(metrics) else ""
        return f"Not learning: {', '.join(bad)}{at}. The numbers below are no result."
    metrics = {stage: at_export(*found) for stage, found in seen.items() if stage != "fix"}
    key = "top1" if all("top1" in x for x in metrics.values()) else "agreement1"
    told = [f"{stage} {x[key]:.1%}" for stage, x in metrics.items() if key in x]
    images = {round(images_of(key, x) or 0) for x in metrics.values() if key in x}
    on = f" on {images.pop():,} held-out images" if len(images) == 1 else ""
    name = METRICS[key].label.capitalize()
    said = f"{name}: {', then '.join(told)}{on}." if told else "No evaluation."
    fixed = seen["fix"][0]["resolution"] if "fix" in seen else None
    return f"{said} The fix: {said_of(fixed)}." if fixed else said


def _row(out: Path, stage: str, facts: dict[str, Any], lines: list[dict[str, Any]]) -> list[str]:
    metrics = at_export(facts, lines)
    shown = [METRICS[key].show(metrics[key]) if key in metrics else "–" for key in COLUMNS]
    hours = sum(x["seconds"] for x in lines if x["kind"] == "train") / 3600
    size = (facts.get("resolution") or {}).get("chosen") or facts["student"]["input_size"]
    targets = "teacher" if facts["teacher_sha256"] else "labels"
    epochs = f"{lines[-1]['epoch']:.1f}" if lines else "–"
    images = f"{round(metrics['images']):,}" if "images" in metrics else "–"
    took = [f"{facts['steps']:,}", epochs, f"{facts['peak_lr']:.4g}", f"{hours:.2f}"]
    return [stage, *shown, images, str(size), *took, targets]


def _link(stage: str) -> str:
    return f'<a href="{stage}/report.html">{stage}</a>'


def _curves(seen: dict[str, Seen]) -> list[str]:
    """Every metric over all steps, a line per stage, each beginning where the last one ended."""
    found = []
    for key in COLUMNS:
        series, offset = {}, 0
        for stage, (facts, lines) in seen.items():
            seen_here = [x for x in lines if x["kind"] == "eval" and x.get(key) is not None]
            series[stage] = [(offset + x["step"], x[key]) for x in seen_here]
            offset += facts["steps"]
        if any(series.values()):
            found.append(page.curves(METRICS[key].label, series))
    return found
