"""A trained detector on an annotated set: the detection part of `ssld evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from downstream.detection.batches import BoxBatches
from downstream.detection.coco_protocol import similarity_of
from downstream.detection.data.boxes import open_boxes
from downstream.detection.data.transforms import EvalBoxView
from downstream.detection.model import open_detector, views_of
from downstream.detection.networks import detector
from downstream.detection.report import by_class
from downstream.detection.score import GroundTruth, score_of
from downstream.detection.task import PREDICTIONS
from ssld.data.loading import eval_batches
from ssld.data.unreadable import Unreadables
from ssld.health.config import EvaluateConfig

Table = tuple[Sequence[Sequence[str]], Sequence[str]]
"""Rows and head."""


def evaluate_detector(
    folder: Path, content: dict[str, Any], config: EvaluateConfig
) -> tuple[dict[str, Any], Table]:
    """What `ssld evaluate` says of an exported detector: metrics and a table.

    Args:
        folder, content: as of `downstream.dense.model.read_description`.

    Returns:
        The metrics, empty where there was nothing to be found, with `images` and `unreadable`; rows
        and head of the table.

    Raises:
        InputError: a damaged model, or a set that cannot be read or has other classes.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, (augment, test) = open_detector(folder, content).to(device), views_of(content)
    finds = detector(content["head"]["name"]).finds
    opened = partial(open_boxes, class_names=content["class_names"], masks=finds == "masks")
    sources = [opened(path) for path in config.data]
    similarity = similarity_of(finds, model.keypoints, test.oks_sigmas)
    unreadables = Unreadables(sources, config.max_unreadable)
    batches = eval_batches(
        BoxBatches(sources, EvalBoxView()), batch_size=1, workers=config.workers, device=device,
        unreadables=unreadables, description="evaluate",
    )  # fmt: skip
    with torch.inference_mode():
        score = score_of(model, batches, GroundTruth(sources, similarity), augment, test)
    metrics: dict[str, Any] = score.metrics()
    if not metrics:
        return {}, ([], [])
    images = sum(map(len, sources)) - unreadables.count
    result = {**metrics, "images": images, "unreadable": unreadables.count}
    if config.out:
        score.counts.save(_results_file(config.out))
        result["predictions"] = str(_results_file(config.out))
    return result, by_class(score.counts)


def _results_file(out: str) -> Path:
    """Of COCO results, beside the file of the evaluation."""
    return Path(out).with_name(f"{Path(out).stem}-{PREDICTIONS}")
