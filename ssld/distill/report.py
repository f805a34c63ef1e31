"""`report.html` of a run: does it learn, what does it see, where does its time go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from ssld.common.metrics import METRICS
from ssld.data.loading import ViewBatches, train_batches
from ssld.distill.setup import ClassifierRun
from ssld.health.classification_metrics import BINS, ClassificationMetrics, Example
from ssld.health.resolution import describe_choice
from ssld.health.verdict import shown_verdict, standing
from ssld.models.class_titles import class_titles
from ssld.models.classifier import Classifier
from ssld.report import page, plots
from ssld.report.training import SHARE, plots_of, write_training_report

WORST = 16
"""Classes that are named in the plot of agreement by class."""
VIEWS = 16
"""First training views that are shown as each network sees them."""
BY_SIZE = ("top1", "agreement1")
"""Metrics in the table of sizes of a resolution fix."""
MOMENTS = ("before", "after")
LONGEST = 60
"""Characters of a class's name."""
CURVES = (
    (
        "agreement with the teacher",
        {
            "agreement1": "student's best is the teacher's",
            "agreement5": "among the student's five best",
            "agreement_chance": "by chance",
        },
        SHARE,
    ),
    ("divergence", {"divergence": "divergence"}, {"low": 0}),
    (
        "feature agreement with the teacher",
        {"feature_agreement": "about the means", "feature_cosine": "mean cosine"},
        {"high": 1.02},
    ),
    (
        "how much alike the features of all images are",
        {"feature_sameness_student": "student", "feature_sameness_teacher": "teacher"},
        SHARE,
    ),
    (
        "against labels",
        {
            "top1": "top-1",
            "top5": "top-5",
            "top1_chance": "top-1 by chance",
            "knn": "probe: nearest neighbours",
            "linear": "probe: linear",
        },
        SHARE,
    ),
    (
        "entropy of predictions, nats",
        {"entropy_student": "student", "entropy_teacher": "teacher"},
        {"low": 0},
    ),
    (
        "share of classes ever predicted",
        {"classes_student": "student", "classes_teacher": "teacher"},
        SHARE,
    ),
)


def write_report(
    run: ClassifierRun, student: Classifier, measured: ClassificationMetrics | None
) -> None:
    """Write `report.html` into the run folder, from its files and the last evaluation.

    Args:
        student: the network as it would be exported.
        measured: of the last evaluation, where there was one.
    """
    out, evaluations = run.folder.path, run.folder.history.evaluations()
    on_disk = json.loads((out / "run.json").read_text(encoding="utf-8"))
    fixed = on_disk.get("resolution")
    # Of a fix, the table of sizes says which student it exported.
    exported = None if fixed else on_disk.get("exported")
    names = _class_names(run, student, measured) if measured else []
    write_training_report(
        run,
        "ssld/distill/report.html",
        last_verdict=shown_verdict(evaluations),
        standing=standing(evaluations, exported, student.num_classes),
        resolutions=resolutions(out, fixed),
        evaluation_curves=lambda: plots_of(evaluations, CURVES),
        facts=run.facts,
        classes=lambda: _class_figures(measured, names) if measured else [],
        examples=[_shown_example(x, names) for x in measured.examples] if measured else [],
        views=lambda: [page.picture(*x) for x in views_as_seen(run, student)],
        networks=_networks(run.facts),
    )


def _class_names(
    run: ClassifierRun, student: Classifier, measured: ClassificationMetrics
) -> list[str]:
    labels = run.val_labels.numbers if run.val_labels is not None else None
    names = student.label_names if run.taught else None  # the teacher's
    names = names or (list(labels) if labels else None)
    count = len(measured.by_class)
    if run.taught and not names:
        titles = (run.teacher or student).class_titles
    else:
        titles = class_titles(names, count, of_imagenet=False) if names else None
    return titles or [f"class {i}" for i in range(count)]


def _shown_example(example: Example, names: list[str]) -> dict[str, Any]:
    def best(classes: list[tuple[int, float]]) -> str:
        return ", ".join(f"{_shortened(names[number])}: {share:.0%}" for number, share in classes)

    return {
        "pixels": example.pixels,
        "student": best(example.student),
        "teacher": best(example.teacher),
        "label": names[example.label] if example.label >= 0 else None,
        "image": example.sample_id,
    }


def _class_figures(measured: ClassificationMetrics, names: list[str]) -> list[Markup]:
    figures = []
    if measured.by_class.sum() > 0:
        figures.append(agreement_by_class(measured, names))
    if measured.bins.sum() > 0:
        figures.append(_calibration(measured))
    return figures


def agreement_by_class(measured: ClassificationMetrics, names: list[str]) -> Markup:
    """A bar for each of the `WORST` classes."""
    count, agreed = measured.by_class.T.cpu().numpy()
    seen = np.flatnonzero(count)
    share = agreed[seen] / count[seen]
    worst = seen[np.argsort(share, kind="stable")][:WORST]
    rows = []
    for i in worst:
        agrees = float(agreed[i] / count[i])
        parts = [(agrees, plots.COLOURS[0]), (1 - agrees, "#eef1f4")]
        rows.append(([_shortened(names[i]), f"{count[i]:.0f}", f"{agrees:.0%}"], parts))
    which = f"the {len(worst)} worst of {len(seen)} classes" if len(seen) > WORST else "by class"
    caption = f"agreement, {which} by the teacher's word"
    return page.bars(caption, rows, ["", "images", "agreement@1"])


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def _calibration(measured: ClassificationMetrics) -> Markup:
    count, confidence, hits = measured.bins.T.cpu().numpy()
    figure = plots.new_figure()
    plot = plots.axes(figure, "student's confidence")
    middle = (np.arange(BINS) + 0.5) / BINS
    right = np.divide(hits, count, where=count > 0, out=np.zeros(BINS))
    plot.bar(middle, right, 0.9 / BINS, color=plots.COLOURS[0], label="share right")
    plot.plot([0, 1], [0, 1], color=plots.GREY, lw=1, ls="--", label="calibrated")
    plot.bar(middle, 0.12 * count / count.max(), 0.9 / BINS, color="#d0d7de", label="images")
    plot.set_xlim(0, 1)
    plot.set_ylim(0, 1)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    # Expected calibration error (Guo et al. 2017, equation 3)
    error = np.abs(confidence - hits).sum() / count.sum()
    return page.plot(f"calibration on {count.sum():.0f} labeled images, ECE {error:.3f}", figure)


def _networks(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        (
            role,
            f"{fact['architecture']}, {fact['parameters_m']:.2f} M parameters, "
            f"{fact['macs_m']:,.0f} M multiply-adds at {fact['input_size']} px",
        )
        for role, fact in facts.items()
        if isinstance(fact, dict) and "parameters_m" in fact
    ]
    if top1 := facts.get("teacher_top1"):
        share = f"{top1['hits'] / top1['images']:.2%} [{top1['low']:.2%} to {top1['high']:.2%}]"
        rows.append(("teacher's top-1", f"{share} on {top1['images']} labeled images"))
    counts = dict(facts["images"])
    counts |= {f"held out of {path}": n for path, n in (facts.get("held_out") or {}).items()}
    rows += [(path, f"{count:,} images") for path, count in counts.items()]
    for key in ("teacher_sha256", "data_sha256", "val_sha256", "peak_lr", "processes", "device"):
        if facts.get(key) is not None:
            rows.append((key.replace("_", " "), str(facts[key])))
    return rows


def resolutions(run: Path, resolution: dict[str, Any] | None) -> dict[str, Any]:
    """Note, table and curve; nothing of a run that is no finished fix.

    Args:
        resolution: what the run's run.json says.
    """
    path = run / "resolutions.json"
    if not resolution or not path.is_file():
        return {}
    table = json.loads(path.read_text(encoding="utf-8"))
    metric = table["metric"]
    series = {
        moment: [(row["size"], row[metric]) for row in table[moment] if metric in row]
        for moment in MOMENTS
    }
    rows = [
        [f"{after['size']} px"] + [f"{row[key]:.2%}" if key in row else "–" for key in BY_SIZE
                                   for row in (before, after)]
        for before, after in zip(table["before"], table["after"], strict=True)
    ]  # fmt: skip
    brought = describe_choice(resolution)
    note = (
        f"Trained at {table['trained_at']} px, its classifier fixed at {table['fixed_at']} px. "
        f"{brought[:1].upper()}{brought[1:]}."
    )
    if "images" in table:
        note += " Table and curve are of the images that report."
    head = [f"{METRICS[key].label} {moment}" for key in BY_SIZE for moment in MOMENTS]
    curve = plots.curves(series, xlabel="px")
    return {
        "note": note,
        "head": ["held-out images at", *head],
        "rows": rows,
        "curve": page.plot(f"{METRICS[metric].label} over test size", curve),
    }


def views_as_seen(run: ClassifierRun, student: Classifier) -> list[tuple[str, np.ndarray]]:
    """(caption, uint8 picture [h, w, 3]) of the same views: raw, then each network's input, whose
    range -2.5..2.5 is shown as black..white, so that a wrong normalisation shows as a tint."""
    batches = train_batches(
        ViewBatches(run.sources, run.view), run.sampler, batch_size=VIEWS, first_step=0, last_step=1
    )
    images = next(iter(batches)).images
    panels = [("views, as drawn", page.grid(images.numpy()))]
    teachers = list(run.teacher.networks) if run.teacher else []
    for name, network in [("student", student), *(("teacher", t) for t in teachers)]:
        panels.append((f"as the {name} sees them", page.grid(_seen(network, images))))
    return panels


@torch.no_grad()
def _seen(network: Classifier, images: torch.Tensor) -> np.ndarray:
    device = next(network.parameters()).device
    x = network.preprocess(images.to(device)).permute(0, 2, 3, 1)
    return ((x / 5 + 0.5).clamp(0, 1) * 255).round().byte().cpu().numpy()
