"""`report.html` of a run: does it learn, what does it see, where does its time go."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from ssld.common.attempt import attempt
from ssld.distill import report_resolutions as resolutions
from ssld.distill.report_views import views_as_seen
from ssld.distill.setup import ClassifierRun
from ssld.engine.run_folder import versions
from ssld.health.classification_metrics import BINS, Tally
from ssld.health.verdict_text import paragraph, standing
from ssld.models.classifier import Classifier
from ssld.report import page
from ssld.report.training import (
    Lines,
    headline,
    plots_of,
    section,
    time_curves,
    training_curves,
)

WORST = 16
"""Classes that are named in the plot of agreement by class."""
LONGEST = 60
"""Characters of a class's name."""


def write_report(run: ClassifierRun, student: Classifier, tally: Tally | None) -> None:
    """Write `report.html` into the run folder, from its files and the last evaluation.

    Args:
        student: the network as it would be exported.
        tally: of the last evaluation, where there was one.
    """
    history, out = run.folder.history, run.folder.path
    train, evaluations = history.training(), history.evaluations()
    title = out.resolve().name
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="lead">{html.escape(headline(run, train))}</p>',
        paragraph(evaluations),
        attempt(
            "where the student stands",
            lambda: standing(evaluations, _exported(out), student.num_classes),
        ),
        attempt("the resolutions", lambda: "".join(_resolutions(out))),
        section("Held-out images", lambda: _progress_curves(evaluations)),
        section("Training", lambda: training_curves(train)),
        section(
            "Where a step's time goes",
            lambda: time_curves(train),
            "On the main process. Reduction is the part that the backward pass does not hide; "
            "utilisation (MFU) is against a large matrix product on this device "
            f"({run.facts['peak_flops'] / 1e12:.2f} TFLOP/s), left out beyond that. `ssld bench` "
            "measures the ratio to supervised training; the curve derives it from this split.",
        ),
        attempt("classes and confidence", lambda: _predictions(run, tally)),
        section("Views", lambda: [page.picture(*x) for x in views_as_seen(run, student)]),
        "<h2>Networks and data</h2>",
        attempt("the networks", lambda: page.table(_facts(run.facts))),
        f"<h2>Settings</h2><pre>{html.escape((out / 'config.yaml').read_text())}</pre>",
        "<h2>Versions</h2>",
        page.table(sorted(versions().items())),
    ]
    page.write_page(out / "report.html", title, body)


def _resolutions(out: Path) -> list[str]:
    """What a resolution fix found, where this run is a finished one."""
    path = out / "resolutions.json"
    found = _facts_on_disk(out).get("resolution")
    if not found or not path.is_file():
        return []
    table = json.loads(path.read_text(encoding="utf-8"))
    return ["<h2>Resolution</h2>", *resolutions.figures(table, found)]


def _exported(out: Path) -> dict[str, Any] | None:
    """Of which step the exported student is; after a fix that is said under its sizes."""
    facts = _facts_on_disk(out)
    return None if facts.get("resolution") else facts.get("exported")


def _facts_on_disk(out: Path) -> dict[str, Any]:
    return json.loads((out / "run.json").read_text(encoding="utf-8"))


def _progress_curves(evaluations: Lines) -> list[str]:
    share = {"low": 0, "high": 1.02}
    agreement = {
        "agreement1": "student's best is the teacher's",
        "agreement5": "among the student's five best",
        "agreement_chance": "by chance",
    }
    labels = {"top1": "top-1", "top5": "top-5", "top1_chance": "top-1 by chance"}
    labels["knn"] = "probe: nearest neighbours"
    labels["linear"] = "probe: linear"
    plots = [
        ("agreement with the teacher", agreement, share),
        ("divergence", {"divergence": "divergence"}, {"low": 0}),
        ("against labels", labels, share),
        (
            "entropy of predictions, nats",
            {"entropy_student": "student", "entropy_teacher": "teacher"},
            {"low": 0},
        ),
        (
            "share of classes ever predicted",
            {"classes_student": "student", "classes_teacher": "teacher"},
            share,
        ),
    ]
    return plots_of(evaluations, plots)


def _predictions(run: ClassifierRun, tally: Tally | None) -> str:
    if tally is None:
        return ""
    names = _names(run, tally)
    figures = []
    if tally.by_class.sum() > 0:
        figures.append(_agreement_by_class(tally, names))
    if tally.bins.sum() > 0:
        figures.append(_calibration(tally))
    cards = [
        page.card(
            example.pixels,
            [
                ("student", _top(example.student, names)),
                ("teacher", _top(example.teacher, names)),
                *([("label", names[example.label])] if example.label >= 0 else []),
                ("image", example.sample_id),
            ],
        )
        for example in tally.examples
    ]
    disagreement = (
        "<h2>Where student and teacher disagree most</h2><p class='note'>Held-out images with the "
        "largest divergence, three best classes and their probabilities.</p>"
        f'<div class="cards">{"".join(cards)}</div>'
        if cards
        else ""
    )
    return section("Classes and confidence", lambda: figures) + disagreement


def _names(run: ClassifierRun, tally: Tally) -> list[str]:
    labels = run.val_labels.numbers if run.val_labels is not None else None
    names = run.teacher.label_names if run.teacher is not None else None
    names = names or (list(labels) if labels else None)
    return names or [f"class {i}" for i in range(len(tally.by_class))]


def _top(best: list[tuple[int, float]], names: list[str]) -> str:
    return ", ".join(f"{_shortened(names[number])}: {share:.0%}" for number, share in best)


def _agreement_by_class(tally: Tally, names: list[str]) -> str:
    """In HTML, as browsers know the letters of all languages."""
    count, agreed = tally.by_class.T.cpu().numpy()
    seen = np.flatnonzero(count)
    share = agreed[seen] / count[seen]
    worst = seen[np.argsort(share, kind="stable")][:WORST]
    rows = []
    for i in worst:
        agrees = float(agreed[i] / count[i])
        parts = [(agrees, page.COLOURS[0]), (1 - agrees, "#eef1f4")]
        rows.append(([_shortened(names[i]), f"{count[i]:.0f}", f"{agrees:.0%}"], parts))
    which = f"the {len(worst)} worst of {len(seen)} classes" if len(seen) > WORST else "by class"
    bars = page.bars(rows, ["", "images", "agreement@1"])
    return page.captioned(f"agreement, {which} by the teacher's word", bars)


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _calibration(tally: Tally) -> str:
    count, confidence, hits = tally.bins.T.cpu().numpy()
    used = count > 0
    figure = page.new_figure()
    plot = page.axes(figure, "student's confidence")
    middle = (np.arange(BINS) + 0.5) / BINS
    plot.bar(middle, np.divide(hits, count, where=used, out=np.zeros(BINS)), 0.9 / BINS,
             color=page.COLOURS[0], label="share right")  # fmt: skip
    plot.plot([0, 1], [0, 1], color="#57606a", lw=1, ls="--", label="calibrated")
    plot.bar(middle, 0.12 * count / count.max(), 0.9 / BINS, color="#d0d7de", label="images")
    plot.set_xlim(0, 1)
    plot.set_ylim(0, 1)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    error = np.abs(confidence - hits).sum() / count.sum()
    return page.drawn(f"calibration on {count.sum():.0f} labeled images, ECE {error:.3f}", figure)


def _facts(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for role, fact in facts.items():
        if isinstance(fact, dict) and "parameters_m" in fact:
            rows.append(
                (
                    role,
                    f"{fact['architecture']}, {fact['parameters_m']:.2f} M parameters, "
                    f"{fact['macs_m']:,.0f} M multiply-adds at {fact['input_size']} px",
                )
            )
    top1 = facts.get("teacher_top1")
    if top1:
        rows.append(
            (
                "teacher's top-1",
                f"{top1['hits'] / top1['images']:.2%} [{top1['low']:.2%} to {top1['high']:.2%}] "
                f"on {top1['images']} labeled images",
            )
        )
    rows += [(path, f"{count:,} images") for path, count in facts["images"].items()]
    for path, count in (facts.get("held_out") or {}).items():
        rows.append((f"held out of {path}", f"{count:,} images"))
    for key in ("teacher_sha256", "data_sha256", "val_sha256", "peak_lr", "processes", "device"):
        if facts.get(key) is not None:
            rows.append((key.replace("_", " "), str(facts[key])))
    return rows
