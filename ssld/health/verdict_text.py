"""What the pages of runs and recipes say of the last evaluation, and of the exported one."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from ssld.health.verdict import is_not_learning, level, symptoms

KINDS = {"still improving": "improving", "flat": "flat", "no longer": "flat"}
Lines = Sequence[Mapping[str, Any]]


def paragraph(evaluations: Lines, stage: str = "") -> str:
    """The last verdict, coloured by its kind.

    Args:
        evaluations: lines of metrics.jsonl, oldest first.
        stage: named first, on a page of several.
    """
    name = f"{html.escape(stage)}: " if stage else ""
    if not evaluations:
        return f'<p class="verdict">{name}No verdict: no evaluation yet.</p>'
    said = str(evaluations[-1]["verdict"])
    begins = said.removeprefix("finished, ")
    css = next((css for words, css in KINDS.items() if begins.startswith(words)), "")
    css = "not" if is_not_learning(said) else css
    return f'<p class="verdict {css}">{name}{html.escape(said[:1].upper() + said[1:])}.</p>'


def standing(evaluations: Lines, exported: Mapping[str, Any] | None, num_classes: int) -> str:
    """Where the last evaluation stands against chance, and which one `student/` holds.

    Args:
        exported: what run.json says, where the run has finished.
    """
    if not evaluations:
        return ""
    last = evaluations[-1]
    said = [f"The last evaluation, step {last['step']:,}: {level(last) or 'no chance level'}."]
    step = exported["step"] if exported else last["step"]
    line = next((x for x in evaluations if x["step"] == step), None)
    if exported and line is None:
        said.append(f"The exported student is that of step {step:,}, which was not evaluated.")
    elif exported and line is not None:
        signs = "; ".join(signs_of(line, num_classes))
        also = "" if line is last else f": {level(line) or 'no chance level'}"
        said.append(f"The exported student is that of step {step:,}{also}.")
        said += [f"It has symptoms: {signs}."] if signs else []
    return f'<p class="note">{html.escape(" ".join(said))}</p>'


def signs_of(line: Mapping[str, Any], num_classes: int) -> list[str]:
    """The symptoms of an evaluation of a classifier; none where its line cannot tell."""
    return symptoms(line, num_classes) if "entropy_student" in line else []
