"""A trained detector on an annotated set: the detection part of `ssld evaluate`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from downstream.dense.judging import Table, judge
from downstream.detection.batches import BoxBatches
from downstream.detection.coco_protocol import similarity_of
from downstream.detection.data.boxes import open_boxes
from downstream.detection.data.transforms import EvalBoxView
from downstream.detection.model import open_detector, views_of
from downstream.detection.networks import detector
from downstream.detection.report import by_class
from downstream.detection.score import GroundTruth, score_of
from downstream.detection.task import PREDICTIONS
from ssld.health.config import EvaluateConfig


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
    model, (augment, test) = open_detector(folder, content), views_of(content)
    finds = detector(content["head"]["name"]).finds
    opened = partial(open_boxes, class_names=content["class_names"], masks=finds == "masks")
    sources = [opened(path) for path in config.data]
    truth = GroundTruth(sources, similarity_of(finds, model.keypoints, test.oks_sigmas))
    score, result = judge(
        model,
        BoxBatches(sources, EvalBoxView()),
        config,
        lambda batches: score_of(model, batches, truth, augment, test),
    )
    if not result:
        return {}, ([], [])
    if config.out:
        score.counts.save(_results_file(config.out))
        result["predictions"] = str(_results_file(config.out))
    return result, by_class(score.counts)


def _results_file(out: str) -> Path:
    """Of COCO results, beside the file of the evaluation."""
    return Path(out).with_name(f"{Path(out).stem}-{PREDICTIONS}")
