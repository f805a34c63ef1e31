"""`report.html` of a recipe: what each stage did, on one page."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssld.report import page
from ssld.report.resolutions import figures
from ssld.run.folder import read_lines

COLUMNS = {
    "top1": "top-1",
    "agreement1": "agreement@1",
    "divergence": "divergence",
    "knn": "nearest neighbours",
    "linear": "linear probe",
}


def write_report(out: Path, stages: Sequence[str]) -> None:
    """Write `out/report.html` from the run folders of the stages, all finished."""
    seen = {stage: _read(out / stage) for stage in stages}
    body = [
        f"<h1>{html.escape(out.resolve().name)}</h1>",
        f'<p class="lead">{html.escape(_headline(seen))}</p>',
        '<p class="note">Each stage at the step whose student it exported, on held-out images; the '
        "resolution fix at the size that it chose, its curves at the one that it trains at.</p>",
        page.table([_row(out, stage, *found) for stage, found in seen.items()], HEAD),
        f"<p>{' · '.join(_link(stage) for stage in stages)}</p>",
        "<h2>Held-out images, stage after stage</h2>",
        f'<div class="row">{"".join(_curves(seen))}</div>',
    ]
    if "fix" in seen:
        table = json.loads((out / "fix" / "resolutions.json").read_text(encoding="utf-8"))
        body += ["<h2>Resolution</h2>", *figures(table)]
    page.write_page(out / "report.html", out.resolve().name, body)


HEAD = ["stage", *COLUMNS.values(), "px", "steps", "epochs", "peak lr", "hours", "targets"]
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


def _headline(seen: dict[str, Seen]) -> str:
    metrics = {stage: at_export(*found) for stage, found in seen.items()}
    key = "top1" if all("top1" in x for x in metrics.values()) else "agreement1"
    told = [f"{stage} {x[key]:.1%}" for stage, x in metrics.items() if key in x]
    return f"{COLUMNS[key].capitalize()}: {', then '.join(told)}." if told else "No evaluation."


def _row(out: Path, stage: str, facts: dict[str, Any], lines: list[dict[str, Any]]) -> list[str]:
    metrics = at_export(facts, lines)
    shown = [
        "–"
        if key not in metrics
        else f"{metrics[key]:.4f}"
        if key == "divergence"
        else f"{metrics[key]:.1%}"
        for key in COLUMNS
    ]
    hours = sum(x["seconds"] for x in lines if x["kind"] == "train") / 3600
    size = (facts.get("resolution") or {}).get("chosen") or facts["student"]["input_size"]
    targets = "teacher" if facts["teacher_sha256"] else "labels"
    epochs = f"{lines[-1]['epoch']:.1f}" if lines else "–"
    return [stage, *shown, str(size), f"{facts['steps']:,}", epochs, f"{facts['peak_lr']:.4g}",
            f"{hours:.2f}", targets]  # fmt: skip


def _link(stage: str) -> str:
    return f'<a href="{stage}/report.html">{stage}</a>'


def _curves(seen: dict[str, Seen]) -> list[str]:
    """Every metric over all steps, a line per stage, each beginning where the last one ended."""
    found = []
    for key, title in COLUMNS.items():
        series, offset = {}, 0
        for stage, (facts, lines) in seen.items():
            seen_here = [x for x in lines if x["kind"] == "eval" and x.get(key) is not None]
            series[stage] = [(offset + x["step"], x[key]) for x in seen_here]
            offset += facts["steps"]
        if any(series.values()):
            found.append(page.curves(title, series))
    return found
