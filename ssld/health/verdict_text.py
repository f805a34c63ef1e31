"""What the pages of runs and recipes say of the last evaluation, and of the exported one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ssld.health.verdict import is_not_learning, level, symptoms

KINDS = {"still improving": "improving", "flat": "flat", "no longer": "flat"}
Lines = Sequence[Mapping[str, Any]]


def shown_verdict(evaluations: Lines, stage: str = "") -> tuple[str, str]:
    """The last verdict, and its kind, which a page colours it by.

    Args:
        evaluations: lines of metrics.jsonl, oldest first.
        stage: named first, on a page of several.
    """
    name = f"{stage}: " if stage else ""
    if not evaluations:
        return f"{name}No verdict: no evaluation yet.", ""
    verdict = str(evaluations[-1]["verdict"])
    begins = verdict.removeprefix("finished, ")
    kind = next((kind for words, kind in KINDS.items() if begins.startswith(words)), "")
    kind = "not" if is_not_learning(verdict) else kind
    return f"{name}{verdict[:1].upper()}{verdict[1:]}.", kind


def standing(evaluations: Lines, exported: Mapping[str, Any] | None, num_classes: int) -> str:
    """Where the last evaluation stands against chance, and which one `student/` holds.

    Args:
        exported: what run.json says, where the run has finished.
    """
    if not evaluations:
        return ""
    last = evaluations[-1]
    text = f"The last evaluation, step {last['step']:,}: {level(last) or 'no chance level'}."
    if not exported:
        return text
    step = exported["step"]
    line = next((x for x in evaluations if x["step"] == step), None)
    text += f" The exported student is that of step {step:,}"
    if line is None:
        return f"{text}, which was not evaluated."
    text += "." if line is last else f": {level(line) or 'no chance level'}."
    signs = "; ".join(symptoms(line, num_classes))
    return f"{text} It has symptoms: {signs}." if signs else text
