"""Batches of labeled and unlabeled images in a fixed ratio, made by loader processes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from downstream.dense.preflight import Readable
from downstream.detection.batches import GREY_PX, BoxBatch, BoxBatches
from downstream.detection.data.boxes import BoxSource
from downstream.detection.data.transforms import TrainBoxView
from downstream.sed.views import UnlabeledView
from ssld.data.loading import GREY, AnyBatch, read_rows
from ssld.data.sampling import Sampler
from ssld.data.transforms import key_of
from ssld.data.unreadable import Entry
from ssld.data.workers import Rows


class LabeledAndUnlabeled:
    """An order of samples (`ssld.data.sampling.Order`) in which each forward pass sees labeled
    images, then `per_labeled` times as many unlabeled ones. Each kind has its own stream, which is
    taken in order; an epoch is one over the labeled images.

    Args:
        labeled, unlabeled: numbers of images in their sources; those of unlabeled images are
            numbered after the others.
        pass_size: labeled images of a pass over all processes.
        seed: the run's.
    """

    def __init__(
        self,
        labeled: list[int],
        unlabeled: list[int],
        *,
        pass_size: int,
        per_labeled: int,
        seed: int,
    ) -> None:
        self.labeled = Sampler(labeled, None, seed)
        self.unlabeled = Sampler(unlabeled, None, seed)
        self.pass_size, self.per_labeled = pass_size, per_labeled
        self.samples_per_epoch = sum(labeled)

    def draw(self, start: int, stop: int) -> np.ndarray:
        """Positions [start, stop) -> int64 [stop - start, 3]: source, index, view."""
        size = self.pass_size * (1 + self.per_labeled)
        first, last = start // size, -(-stop // size)
        passes = [self._pass(number) for number in range(first, last)]
        rows = np.concatenate(passes) if passes else np.empty((0, 3), np.int64)
        return rows[start - first * size : stop - first * size]

    def _pass(self, number: int) -> np.ndarray:
        labeled, unlabeled = self.pass_size, self.pass_size * self.per_labeled
        after = np.array([len(self.labeled.sizes), 0, 0])
        return np.concatenate([
            self.labeled.draw(number * labeled, (number + 1) * labeled),
            self.unlabeled.draw(number * unlabeled, (number + 1) * unlabeled) + after,
        ])  # fmt: skip


@dataclass(frozen=True)
class SedBatch(AnyBatch):
    """One forward pass of one process: b labeled images, then u unlabeled ones."""

    images: Tensor
    """uint8 [b, h, w, 3], labeled, each in the upper left corner."""
    sizes: Tensor
    """int64 [b, 2]: height and width of each in px."""
    targets: list[dict[str, Tensor]]
    """Of the labeled images, as of `BoxBatch`."""
    weak: Tensor
    """uint8 [u, h, w, 3], unlabeled."""
    strong: Tensor
    """uint8 [u, h, w, 3]: the same images, changed in colour and erased in part."""
    unlabeled_sizes: Tensor
    """int64 [u, 2]."""
    scale: int
    """s: the same on all processes."""
    weight: Tensor
    """float32 [b + u]: 1, or 0 for an unreadable image."""
    ids: list[str]
    unreadable: list[Entry]


class SedBatches:
    """Makes the batch of labeled and unlabeled views that rows ask for.

    Args:
        view: of labeled images.
        unlabeled_view: of the others.
        scales: S; s is drawn from 1 to S by (seed, number of the batch).
    """

    def __init__(
        self,
        labeled: Sequence[BoxSource],
        unlabeled: Sequence[Readable],
        view: TrainBoxView,
        unlabeled_view: UnlabeledView,
        scales: int,
    ) -> None:
        self.sources: list[Readable] = [*labeled, *unlabeled]
        self.labeled = BoxBatches(labeled, view)
        self.view, self.scales = unlabeled_view, scales

    def __call__(self, rows: Rows) -> SedBatch:
        """A batch of rows int64 [b + u, 4]."""
        human = rows[:, 0] < len(self.labeled.sources)
        labeled: BoxBatch = self.labeled(rows[human])
        views, weight, ids, unreadable = read_rows(
            self.sources, rows[~human], self._views, _placeholder
        )
        sizes = torch.tensor([weak.shape[:2] for weak, _ in views])  # [u, 2]
        weak, strong = (_padded(one, sizes) for one in zip(*views, strict=True))
        number = int(rows[0, 3])
        return SedBatch(
            labeled.images,
            labeled.sizes,
            labeled.targets,
            weak,
            strong,
            sizes,
            random.Random(key_of(self.view.weak.seed, "scale", number)).randint(1, self.scales),
            torch.cat([labeled.weight, weight]),
            [*labeled.ids, *ids],
            [*labeled.unreadable, *unreadable],
        )

    def _views(self, number: int, index: int, view: int, batch: int) -> tuple[Tensor, Tensor]:
        return self.view(self.sources[number], index, view, batch)


def _padded(images: Sequence[Tensor], sizes: Tensor) -> Tensor:
    """uint8 [u, h, w, 3] of the largest height and width."""
    padded: Any = torch.zeros(len(images), *sizes.amax(0).tolist(), 3, dtype=torch.uint8)
    for place, image in zip(padded, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    return padded


def _placeholder() -> tuple[Tensor, Tensor]:
    grey = torch.full((GREY_PX, GREY_PX, 3), GREY, dtype=torch.uint8)
    return grey, grey
