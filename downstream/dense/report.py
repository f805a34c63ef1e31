"""`report.html` of a detection or segmentation run: how it learns and what it finds."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from downstream.dense.preflight import IN_BOTH, flattering
from ssld.common.errors import attempt
from ssld.common.files import write_atomically
from ssld.common.metrics import METRICS, ONE_VIEW
from ssld.engine.run_folder import PICTURES
from ssld.engine.start import Run
from ssld.report import page
from ssld.report.training import Lines, Plots, plots_of, write_training_report

Table = tuple[str, Sequence[Sequence[str]], Sequence[str], str]
"""Title, rows, head, and a note below."""
JPEG_QUALITY = 88
TRAINING_VIEWS = "training-views.jpg"
"""See `downstream/dense/training_views.py`."""


def write_picture(run: Run, step: int, make: Callable[[], np.ndarray]) -> None:
    """Keep an evaluation's sheet, uint8 [h, w, 3], as `pictures/step-00000100.jpg`, and show it to
    the trackers; a run goes on without one."""
    folder = run.folder.path / PICTURES

    def write() -> None:
        folder.mkdir(exist_ok=True)
        buffer, sheet = io.BytesIO(), make()
        Image.fromarray(sheet).save(buffer, "JPEG", quality=JPEG_QUALITY)
        write_atomically(folder / f"step-{step:08d}.jpg", buffer.getvalue())
        for tracker in run.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({PICTURES: sheet[None]}, step, **layout)

    attempt(f"the pictures of step {step:,}", write)


def pictures(run: Path) -> list[Path]:
    """The sheets of a run folder, the last one first."""
    return sorted((run / PICTURES).glob("step-*.jpg"), reverse=True)


def write_report(
    run: Run,
    curves: Plots,
    by_class: tuple[Sequence[Sequence[str]], Sequence[str]],
    figures: Sequence[str] = (),
    tables: Sequence[Table] = (),
) -> None:
    """Write `report.html` into the run folder, from its files and the last evaluation.

    Args:
        curves: of the evaluations.
        by_class: rows of a table, and its head.
        figures: further elements of the page, of the last evaluation.
        tables: further tables, of the last evaluation.
    """
    out, evaluations = run.folder.path, run.folder.history.evaluations()
    sheets = pictures(out)
    classes, class_head = by_class
    write_training_report(
        run,
        "downstream/dense/report.html",
        last_verdict=_verdict(evaluations),
        evaluation_curves=lambda: plots_of(evaluations, curves),
        classes=classes,
        class_head=class_head,
        tables=[*tables, *_gains(evaluations, run.config.test)],  # type: ignore[attr-defined]
        figures=figures,
        training_views=TRAINING_VIEWS if (out / TRAINING_VIEWS).is_file() else None,
        last_picture=_picture(sheets[0]) if sheets else None,
        earlier=sheets[1:],
        **_preflight(out / "preflight.json"),
        network=_network(run.facts),
    )


def _verdict(evaluations: Lines) -> tuple[str, str]:
    verdict = evaluations[-1]["verdict"] if evaluations else "no verdict: no evaluation yet"
    kind = "not" if "not learning" in verdict else "improving" if "best so far" in verdict else ""
    return f"{verdict[:1].upper()}{verdict[1:]}.", kind


def _gains(evaluations: Lines, test: Any) -> list[Table]:
    """What several views bring at the last evaluation, in points, as the tables of the papers have
    it."""
    last = evaluations[-1] if evaluations else {}
    known = [key for key in last if key + ONE_VIEW in last]
    if not known:
        return []
    rows = [
        [METRICS[key].label if key in METRICS else _words(key)]
        + [f"{100 * last[name]:.1f}" for name in (key + ONE_VIEW, key)]
        + [f"{100 * (last[key] - last[key + ONE_VIEW]):+.1f}"]
        for key in known
    ]
    scales = ", ".join(f"{scale:g}" for scale in test.scales)
    note = (
        f"Images are seen at {scales} times their size{' and mirrored' * test.flip}: {test.views} "
        "views. The one view is the scale nearest to 1, not mirrored."
    )
    title = "What several views bring, at the last evaluation"
    return [(title, rows, ["in %", "one view", "all views", "gain"], note)]


def _words(key: str) -> str:
    """keypoint_ap_large: keypoint AP large."""
    return " ".join("AP" if word == "ap" else word for word in key.split("_"))


def _picture(path: Path) -> Markup:
    return attempt("the pictures of report.html", lambda: sheet(path))


def sheet(path: Path, of: str = "") -> Markup:
    """One of `pictures` as an element of a page.

    Args:
        of: what the caption begins with.
    """
    caption = f"{of}step {int(path.stem[5:]):,}: truth on the left, found on the right"
    return page.picture(caption, np.asarray(Image.open(path)))


def _preflight(file: Path) -> dict[str, Any]:
    """What the page says of the sources: of each its role, facts, and a table of its classes."""
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {IN_BOTH: []}
    shared = content.pop(IN_BOTH)
    sources = [
        (role, report["facts"], *_class_table(report.get("classes", [])))
        for role, group in content.items()
        for report in group
    ]
    return {"sources": sources, "in_both": flattering(shared) if shared else ""}


def _class_table(classes: Sequence[dict[str, Any]]) -> tuple[list[list[str]], list[str]]:
    """Rows and head."""
    head = ["class", *(key.replace("_", " ") for key in (classes[0] if classes else {}))]
    return [[str(i), *map(_cell, one.values())] for i, one in enumerate(classes)], head


def _cell(value: Any) -> str:
    return f"{value:.2%}" if isinstance(value, float) else str(value)


def _network(facts: dict[str, Any]) -> list[tuple[str, str]]:
    network = facts["network"]
    height, width = network["input_size"]
    rows = [
        (
            "network",
            f"{network['architecture']}, {network['parameters_m']:.2f} M parameters, "
            f"{network['macs_m']:,.0f} M multiply-adds at {width} x {height} px",
        ),
        ("backbone", json.dumps(facts["backbone"])),
        ("classes", ", ".join(facts["classes"])),
    ]
    rows += [(path, f"{count:,} images") for path, count in facts["images"].items()]
    keys = ("data_sha256", "val_sha256", "annotations_sha256", "peak_lr", "processes", "device")
    return rows + [(key.replace("_", " "), str(facts[key])) for key in keys]
