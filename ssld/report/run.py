"""`report.html` of a run: does it learn, what does it see, where does its time go."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from ssld.network import Network
from ssld.report import page, resolutions
from ssld.report.training import (
    Lines,
    headline,
    plots_of,
    section,
    thinned,
    time_curves,
    training_curves,
)
from ssld.report.views import views_as_seen
from ssld.run.folder import versions
from ssld.run.setup import ClassifierRun
from ssld.tally import BINS, Tally

WORST = 16
"""Classes that are named in the plot of agreement by class."""


def write_report(run: ClassifierRun, student: Network, tally: Tally | None) -> None:
    """Write `report.html` into the run folder, from its files and the last evaluation.

    Args:
        student: the network as it would be exported.
        tally: of the last evaluation, where there was one.
    """
    lines, out = run.folder.lines(), run.folder.path
    train = thinned([line for line in lines if line["kind"] == "train"])
    evaluations = [line for line in lines if line["kind"] == "eval"]
    title = out.resolve().name
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="lead">{html.escape(headline(run, train))}</p>',
        _verdict(evaluations),
        *_resolutions(out),
        section("Held-out images", _progress_curves(evaluations)),
        section("Training", training_curves(train)),
        section(
            "Where a step's time goes",
            time_curves(train),
            "On the main process. Reduction is the part that the backward pass does not hide; "
            "utilisation (MFU) is against a large matrix product on this device "
            f"({run.facts['peak_flops'] / 1e12:.2f} TFLOP/s), left out beyond that. `ssld bench` "
            "measures the ratio to supervised training; the curve derives it from this split.",
        ),
        _predictions(run, tally),
        section("Views", [page.picture(*panel) for panel in views_as_seen(run, student)]),
        "<h2>Networks and data</h2>",
        page.table(_facts(run.facts)),
        f"<h2>Settings</h2><pre>{html.escape((out / 'config.yaml').read_text())}</pre>",
        "<h2>Versions</h2>",
        page.table(sorted(versions().items())),
    ]
    page.write_page(out / "report.html", title, body)


def _resolutions(out: Path) -> list[str]:
    """What a resolution fix found, where this run is a finished one."""
    path = out / "resolutions.json"
    table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return ["<h2>Resolution</h2>", *resolutions.figures(table)] if "after" in table else []


def _verdict(evaluations: Lines) -> str:
    if not evaluations:
        return '<p class="verdict">No verdict: no evaluation yet.</p>'
    said = evaluations[-1]["verdict"]
    names = ("still improving", "flat", "no longer", "not learning")
    css = dict(zip(names, ("improving", "flat", "flat", "not"), strict=True))
    kind = next(
        (css[name] for name in names if said.removeprefix("finished, ").startswith(name)), ""
    )
    sentence = html.escape(said[:1].upper() + said[1:])
    return f'<p class="verdict {kind}">{sentence}.</p>'


def _progress_curves(evaluations: Lines) -> list[str]:
    share = {"low": 0, "high": 1.02}
    agreement = {
        "agreement1": "student's best is the teacher's",
        "agreement5": "among the student's five best",
        "agreement_chance": "by chance",
    }
    labels = {"top1": "top-1", "top5": "top-5", "knn": "probe: nearest neighbours"}
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
    return section("Classes and confidence", figures) + disagreement


def _names(run: ClassifierRun, tally: Tally) -> list[str]:
    labels = run.val_labels.numbers if run.val_labels is not None else None
    names = run.teacher.label_names if run.teacher is not None else None
    names = names or (list(labels) if labels else None)
    return names or [f"class {i}" for i in range(len(tally.by_class))]


def _top(best: list[tuple[int, float]], names: list[str]) -> str:
    return ", ".join(f"{names[number]}: {share:.0%}" for number, share in best)


def _agreement_by_class(tally: Tally, names: list[str]) -> str:
    count, agreed = tally.by_class.T.cpu().numpy()
    seen = np.flatnonzero(count)
    share = agreed[seen] / count[seen]
    worst = seen[np.argsort(share, kind="stable")][:WORST][::-1]
    figure = page.new_figure()
    plot = page.axes(figure, "agreement@1")
    plot.barh(range(len(worst)), agreed[worst] / count[worst], color=page.COLOURS[0])
    labels = [f"{names[i][:24]} ({count[i]:.0f})" for i in worst]
    plot.set_yticks(range(len(worst)), labels, fontsize=8)
    plot.set_xlim(0, 1)
    which = f"the {len(worst)} worst of {len(seen)} classes" if len(seen) > WORST else "by class"
    return page.drawn(f"agreement, {which} by the teacher's word (images)", figure)


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
