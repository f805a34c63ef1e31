"""A trained segmenter on an annotated set: the segmentation part of `ssld evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from downstream.dense.judging import Table, judge
from downstream.segmentation.batches import MaskBatches
from downstream.segmentation.data.masks import open_masks
from downstream.segmentation.data.transforms import EvalMaskView
from downstream.segmentation.model import open_segmenter, test_of
from downstream.segmentation.task import by_class, score_of
from ssld.health.config import EvaluateConfig


def evaluate_segmenter(
    folder: Path, content: dict[str, Any], config: EvaluateConfig
) -> tuple[dict[str, Any], Table]:
    """What `ssld evaluate` says of an exported segmenter: metrics and a table.

    Args:
        folder, content: as of `downstream.dense.model.read_description`.

    Returns:
        The metrics, empty where there was nothing to be found, with `images` and `unreadable`; rows
        and head of the table.

    Raises:
        InputError: a damaged model, or a set that cannot be read or has other classes.
    """
    model, names = open_segmenter(folder, content), content["class_names"]
    sources = [open_masks(path, names) for path in config.data]
    legend = list(zip(names, content["view"]["palette"], strict=True))
    images, test = sum(map(len, sources)), test_of(content)
    score, result = judge(
        model,
        MaskBatches(sources, EvalMaskView()),
        config,
        lambda batches: score_of(model, batches, legend, images, test),
    )
    return result, by_class(score.counts.total, names) if result else ([], [])
