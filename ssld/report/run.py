"""`report.html` of a run: does it learn, what does it see, where does its time go."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import numpy as np

from ssld.network import Network
from ssld.report import page, resolutions
from ssld.report.views import views_as_seen
from ssld.run.folder import versions
from ssld.run.setup import Run
from ssld.run.timing import SECTIONS
from ssld.tally import BINS, Tally

WORST = 16
"""Classes that are named in the plot of agreement by class."""
SHOWN = 1000
"""Points of a curve."""
Lines = list[dict[str, Any]]


def write_report(run: Run, student: Network, tally: Tally | None) -> None:
    """Write `report.html` into the run folder, from its files and the last evaluation.

    Args:
        student: the network as it would be exported.
        tally: of the last evaluation, where there was one.
    """
    lines, out = run.folder.lines(), run.folder.path
    train = _thinned([line for line in lines if line["kind"] == "train"])
    evaluations = [line for line in lines if line["kind"] == "eval"]
    title = out.resolve().name
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="lead">{html.escape(_headline(run, train))}</p>',
        _verdict(evaluations),
        *_resolutions(out),
        _rows("Held-out images", _progress_curves(evaluations)),
        _rows("Training", _training_curves(train)),
        _rows(
            "Where a step's time goes",
            _time_curves(train),
            "On the main process. Reduction is the part that the backward pass does not hide; "
            "utilisation (MFU) is against a large matrix product on this device "
            f"({run.facts['peak_flops'] / 1e12:.2f} TFLOP/s). `ssld bench` measures the ratio to "
            "supervised training; the curve derives it from this split.",
        ),
        _predictions(run, tally),
        _rows("Views", [page.picture(*panel) for panel in views_as_seen(run, student)]),
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


def _rows(title: str, figures: list[str], note: str = "") -> str:
    if not figures:
        return ""
    said = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return f'<h2>{html.escape(title)}</h2>{said}<div class="row">{"".join(figures)}</div>'


def _thinned(train: Lines) -> Lines:
    """At most `SHOWN` lines: a plot has no more room. Each is a mean over neighbours, at the step
    of the last of them."""
    size = -(-len(train) // SHOWN)
    if size < 2:
        return train
    groups = [train[i : i + size] for i in range(0, len(train), size)]
    exact = ("kind", "step", "epoch", "unreadable")
    return [
        {k: v if k in exact else float(np.mean([line[k] for line in group if k in line]))
         for k, v in group[-1].items()}
        for group in groups
    ]  # fmt: skip


def _headline(run: Run, train: Lines) -> str:
    if not train:
        return "No step has been logged yet."
    last = train[-1]
    said = f"After {last['step']:,} of {run.total_steps:,} steps ({last['epoch']:.1f} epochs) the "
    said += f"loss is {last['loss']:.4f}"
    if last["unreadable"]:
        said += f"; {last['unreadable']} images could not be read (unreadable.jsonl)"
    return said + "."


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


def _series(lines: Lines, names: dict[str, str]) -> dict[str, list[tuple[float, float]]]:
    """{key of a line: label} -> {label: [(step, value)]}."""
    return {
        label: [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        for key, label in names.items()
    }


def _plots(lines: Lines, plots: list[tuple[str, dict[str, str], dict[str, Any]]]) -> list[str]:
    found = []
    for title, names, limits in plots:
        series = _series(lines, names)
        if any(series.values()):
            found.append(page.curves(title, series, **limits))
    return found


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
    return _plots(evaluations, plots)


def _training_curves(train: Lines) -> list[str]:
    known = {"kind", "step", "epoch", "loss", "lr", "unreadable", "images_per_second"}
    known |= {"images_per_second_per_device", "seconds", "supervised_ratio"}
    first = train[0] if train else {}
    terms = {k: k for k in first if k not in known and not k.endswith("_percent")}
    return _plots(train, [("loss terms", terms, {}), ("learning rate", {"lr": "lr"}, {"low": 0})])


def _time_curves(train: Lines) -> list[str]:
    if not train:
        return []
    figure = page.new_figure()
    plot = page.axes(figure, "step")
    names = [*SECTIONS, "other"]
    shares = [[line[f"{name}_percent"] for line in train] for name in names]
    labels = [name.replace("_", " ") for name in names]
    steps = [line["step"] for line in train]
    if len(train) == 1:  # an area needs two points
        steps, shares = [0, steps[0]], [[x[0], x[0]] for x in shares]
    plot.stackplot(steps, shares, labels=labels, colors=page.COLOURS, alpha=0.85)
    plot.set_ylim(0, 100)
    plot.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    split = page.drawn("share of a step, %", figure)
    speed = {"images_per_second_per_device": "per device"}
    used = {"mfu_percent": "MFU, %"}
    ratio = {"supervised_ratio": "distillation : supervised"}
    return [
        split,
        *_plots(
            train,
            [
                ("images per second and device", speed, {"low": 0}),
                ("model FLOPs utilisation, %", used, {"low": 0}),
                ("speed as a share of supervised training's", ratio, {"low": 0, "high": 1}),
            ],
        ),
    ]


def _predictions(run: Run, tally: Tally | None) -> str:
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
    return _rows("Classes and confidence", figures) + disagreement


def _names(run: Run, tally: Tally) -> list[str]:
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
