"""`report.html` of a detection or segmentation run: how it learns and what it finds."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ssld.common.attempt import attempt
from ssld.common.files import write_atomically
from ssld.engine.run_folder import versions
from ssld.engine.start import Run
from ssld.report import page, training
from ssld.report.training import Lines

PICTURES = "pictures"
JPEG_QUALITY = 88


def write_picture(run: Run, step: int, make: Callable[[], np.ndarray]) -> None:
    """Keep an evaluation's sheet, uint8 [h, w, 3], as `pictures/step-00000100.jpg`; a run goes on
    without one."""
    folder = run.folder.path / PICTURES

    def write() -> None:
        folder.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(make()).save(buffer, "JPEG", quality=JPEG_QUALITY)
        write_atomically(folder / f"step-{step:08d}.jpg", buffer.getvalue())

    attempt(f"the pictures of step {step:,}", write)


def write_report(
    run: Run,
    curves: Sequence[tuple[str, dict[str, str], dict[str, Any]]],
    by_class: tuple[Sequence[Sequence[str]], Sequence[str]],
    confusion: Sequence[str] = (),
) -> None:
    """Write `report.html` into the run folder, from its files and the last evaluation.

    Args:
        curves: (title, {key of an evaluation: label}, limits of the plot).
        by_class: rows of a table, and its head.
        confusion: further figures of the last evaluation.
    """
    history, out = run.folder.history, run.folder.path
    train, evaluations = history.training(), history.evaluations()
    title = out.resolve().name
    rows, head = by_class
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="lead">{html.escape(training.headline(run, train))}</p>',
        _verdict(evaluations),
        training.section(
            "Scores on held-out images", lambda: training.plots_of(evaluations, list(curves))
        ),
        f"<h2>By class, at the last evaluation</h2>{page.table(rows, head)}" if rows else "",
        *(f'<div style="max-width: 640px">{figure}</div>' for figure in confusion),
        attempt("the pictures of report.html", lambda: _pictures(out)),
        training.section("Training", lambda: training.training_curves(train)),
        training.section("Where a step's time goes", lambda: training.time_curves(train)),
        f"<h2>Data</h2><pre>{html.escape(_read(out / 'preflight.md'))}</pre>",
        "<h2>Network and run</h2>",
        page.table(_facts(run.facts)),
        f"<h2>Settings</h2><pre>{html.escape((out / 'config.yaml').read_text())}</pre>",
        "<h2>Versions</h2>",
        page.table(sorted(versions().items())),
    ]
    page.write_page(out / "report.html", title, body)


def _verdict(evaluations: Lines) -> str:
    said = evaluations[-1]["verdict"] if evaluations else "no verdict: no evaluation yet"
    kind = "not" if "not learning" in said else "improving" if "best so far" in said else ""
    return f'<p class="verdict {kind}">{html.escape(said[:1].upper() + said[1:])}.</p>'


def _pictures(out: Path) -> str:
    """The last evaluation's sheet, and the earlier ones folded away."""
    files = sorted((out / PICTURES).glob("step-*.jpg"))
    if not files:
        return ""
    shown = page.picture(
        f"step {int(files[-1].stem[5:]):,}: truth on the left, found on the right",
        np.asarray(Image.open(files[-1])),
    )
    earlier = "".join(
        f"<figure><figcaption>{path.stem}</figcaption>"
        f'<img loading="lazy" alt="{path.stem}" src="{PICTURES}/{path.name}"></figure>'
        for path in reversed(files[:-1])
    )
    folded = f"<details><summary>earlier evaluations</summary>{earlier}</details>"
    return f"<h2>Held-out images</h2>{shown}{folded if earlier else ''}"


def _facts(facts: dict[str, Any]) -> list[tuple[str, str]]:
    network, backbone = facts["network"], facts["backbone"]
    height, width = network["input_size"]
    rows = [
        (
            "network",
            f"{network['architecture']}, {network['parameters_m']:.2f} M parameters, "
            f"{network['macs_m']:,.0f} M multiply-adds at {width} x {height} px",
        ),
        ("backbone", json.dumps(backbone)),
        ("classes", ", ".join(facts["classes"])),
    ]
    rows += [(path, f"{count:,} images") for path, count in facts["images"].items()]
    keys = ("data_sha256", "val_sha256", "annotations_sha256", "peak_lr", "processes", "device")
    return rows + [(key.replace("_", " "), str(facts[key])) for key in keys]


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
