"""`ssld evaluate --model RUN --data SET`: a trained network on a set of its own choice.

A classifier is judged by `ssld.health.evaluate`; a detector by average precision, a segmenter by
mean IoU, as at the end of their runs and seen as there.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from downstream.dense.model import FOLDER, read_description, run_folder
from ssld.common.errors import InputError
from ssld.common.files import read_object, write_atomically
from ssld.common.metrics import METRICS
from ssld.health import evaluate as classifiers
from ssld.health.config import EvaluateConfig

OF_ALL = ("model", "data", "workers", "max_unreadable", "out")
"""Settings that detectors and segmenters know, too."""
JUDGES = {
    "detection": "downstream.detection.evaluate:evaluate_detector",
    "segmentation": "downstream.segmentation.evaluate:evaluate_segmenter",
}
"""Named, not imported: classifiers need none of their packages."""


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Print how good a network is, write it to `config.out` and return it.

    Raises:
        InputError: no such network, a set of other classes, or one that cannot be read.
    """
    if not _is_dense(config.model):
        return classifiers.evaluate(config)
    usual = EvaluateConfig(model=config.model, data=config.data)
    for field in fields(config):
        if field.name not in OF_ALL and getattr(config, field.name) != getattr(usual, field.name):
            raise InputError(
                f"{field.name} is of classifiers; {config.model} sees images as in its run: leave "
                f"{field.name} out"
            )
    folder, content = read_description(config.model)
    result, (rows, head) = resolve_name(JUDGES[content["task"]])(folder, content, config)
    if not result:
        raise InputError("data: no image has anything to be found, so there is nothing to judge by")
    print(f"{config.model} on {result['images']} images, {result['unreadable']} unreadable")
    for key, value in result.items():
        if key in METRICS:
            print(f"  {METRICS[key].label}  {value:.4f}")
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        print("  " + "  ".join(map(str.ljust, row, widths)).rstrip())
    if config.out:
        written = {"model": config.model, "data": list(config.data), **result}
        table = [dict(zip(head, row, strict=True)) for row in rows]
        text = json.dumps({**written, "by_class": table}, indent=2) + "\n"
        write_atomically(Path(config.out), text)
    return result


def _is_dense(model: str) -> bool:
    folder = run_folder(model)
    file = folder / "config.json"
    exported = file.is_file() and "task" in read_object(file, "give another copy of it")
    return exported or (folder / FOLDER / "config.json").is_file()
