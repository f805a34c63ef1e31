"""The views that a run begins with, drawn before its first step: do annotations still fit their
images after the augmentation?"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from downstream.dense.drawing import Legend, image_grid, with_legend
from downstream.dense.report import JPEG_QUALITY, TRAINING_VIEWS
from ssld.common.errors import attempt
from ssld.common.files import write_atomically
from ssld.data.loading import Maker
from ssld.engine.start import Run

COUNT = 8
"""Views on it."""
NOTE = "left: what the network sees, right: what it is to learn"

Draw = Callable[[Any, int], tuple[np.ndarray, np.ndarray, set[int]]]
"""(batch, which of its views) -> the view, uint8 [h, w, 3], what is annotated drawn on it, and the
numbers of the classes to be seen."""


def write_training_views(run: Run, make: Maker[Any], draw: Draw, legend: Legend) -> None:
    """Keep them as `training-views.jpg` in a new run's folder; a run goes on without.

    Args:
        make: makes training batches.
        draw: one of their views.
        legend: of all classes.
    """
    if run.previous is None and run.accelerator.is_main_process:
        file = run.folder.path / TRAINING_VIEWS
        attempt("the picture of training views", lambda: _write(file, run, make, draw, legend))


def _write(file: Path, run: Run, make: Maker[Any], draw: Draw, legend: Legend) -> None:
    here = replace(run.config.data, workers=0)  # no process is started for a few images
    config = replace(run.config, accumulate=1, batch_size=COUNT * run.world_size, data=here)
    batch = next(replace(run, config=config).train_batches(make, 0, 1))
    drawn = [draw(batch, i) for i, weight in enumerate(batch.weight.tolist()) if weight > 0]
    if drawn:
        seen = sorted(set().union(*(classes for *_, classes in drawn)))
        grid = image_grid([(view, annotated) for view, annotated, _ in drawn])
        sheet = with_legend(grid, [legend[i] for i in seen], NOTE)
        buffer = io.BytesIO()
        Image.fromarray(sheet).save(buffer, "JPEG", quality=JPEG_QUALITY)
        write_atomically(file, buffer.getvalue())
