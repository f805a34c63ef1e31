"""A trained network on annotated images: what detectors and segmenters share in `ssld evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from downstream.dense.model import DenseModel
from downstream.dense.task import AnnotatedScore
from ssld.data.loading import Maker, eval_batches
from ssld.data.unreadable import Unreadables
from ssld.health.config import EvaluateConfig

Table = tuple[Sequence[Sequence[str]], Sequence[str]]
"""Rows and head."""
S = TypeVar("S", bound=AnnotatedScore[Any])


def judge(
    network: DenseModel,
    make: Maker[Any],
    config: EvaluateConfig,
    score_of: Callable[[Iterator[Any]], S],
) -> tuple[S, dict[str, Any]]:
    """The score, and its metrics with `images` and `unreadable`; no metrics where there was nothing
    to be found.

    Args:
        make: batches of the images.
        score_of: batches, one image each, -> score.

    Raises:
        InputError: too many images cannot be read.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)
    unreadables = Unreadables(make.sources, config.max_unreadable)
    batches = eval_batches(
        make, batch_size=1, workers=config.workers, device=device, unreadables=unreadables,
        description="evaluate",
    )  # fmt: skip
    with torch.inference_mode():
        score = score_of(batches)
    metrics = score.metrics()
    images = sum(map(len, make.sources)) - unreadables.count
    counts = {"images": images, "unreadable": unreadables.count}
    return score, {**metrics, **counts} if metrics else {}
