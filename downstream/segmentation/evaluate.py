"""A trained segmenter on an annotated set: the segmentation part of `ssld evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from downstream.segmentation.batches import MaskBatches
from downstream.segmentation.data.masks import open_masks
from downstream.segmentation.data.transforms import EvalMaskView
from downstream.segmentation.model import open_segmenter, test_of
from downstream.segmentation.task import by_class, score_of
from ssld.data.loading import eval_batches
from ssld.data.unreadable import Unreadables
from ssld.health.config import EvaluateConfig

Table = tuple[Sequence[Sequence[str]], Sequence[str]]
"""Rows and head."""


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
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, names = open_segmenter(folder, content).to(device), content["class_names"]
    sources = [open_masks(path, names) for path in config.data]
    unreadables = Unreadables(sources, config.max_unreadable)
    batches = eval_batches(
        MaskBatches(sources, EvalMaskView()), batch_size=1, workers=config.workers, device=device,
        unreadables=unreadables, description="evaluate",
    )  # fmt: skip
    legend = list(zip(names, content["view"]["palette"], strict=True))
    with torch.inference_mode():
        score = score_of(model, batches, legend, sum(map(len, sources)), test_of(content))
    metrics = score.metrics()
    if not metrics:
        return {}, ([], [])
    images = sum(map(len, sources)) - unreadables.count
    counts = {"images": images, "unreadable": unreadables.count}
    return {**metrics, **counts}, by_class(score.counts.total, names)
