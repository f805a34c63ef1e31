"""Batches with the labels of their views, and the order in which views are replayed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssld.data.loading import Batch, ViewBatches, image_numbers
from ssld.data.sampling import Order
from ssld.data.workers import Rows
from ssld.labels.format import Shard, open_shard

OPEN_SHARDS = 128
"""Kept open by a process that reads."""


@dataclass(frozen=True, kw_only=True)
class TaughtBatch(Batch):
    """With what the teacher said of each view; what it could not read weighs nothing."""

    classes: Tensor
    """int64 [b, k], the likeliest first."""
    log_probs: Tensor
    """float32 [b, k + 1], the last of all other classes together; [b, k] where there are none."""
    fresh: list[int]
    """Rows whose views are not stored: their `log_probs` are even, and wait for the teacher's."""


class Labels:
    """The stored labels of one kind. Pickles cheaply.

    Args:
        shards: in order, of all samples.
        num_classes: of the teacher.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], num_classes: int) -> None:
        self.files = [folder / shard.file for shard in shards]
        self.first = np.array([shard.first for shard in shards], np.int64)
        self.num_classes = num_classes
        self._open: dict[int, dict[str, np.ndarray]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": {}}

    def __call__(self, samples: np.ndarray, views: np.ndarray) -> tuple[Tensor, Tensor]:
        """`classes` and `log_probs` of a `TaughtBatch`; NaN where there is no label.

        Args:
            samples, views: int64 [b].
        """
        found = []
        for sample, view in zip(samples.tolist(), views.tolist(), strict=True):
            number = int(np.searchsorted(self.first, sample, side="right")) - 1
            shard, row = self._shard(number), sample - self.first[number]
            found.append([shard[x][row, view] for x in ("classes", "log_probs", "tail")])
        classes, log_probs, tail = map(np.stack, zip(*found, strict=True))
        return torch.from_numpy(classes.astype(np.int64)), self._decoded(log_probs, tail)

    def _shard(self, number: int) -> dict[str, np.ndarray]:
        if number not in self._open:
            if len(self._open) == OPEN_SHARDS:
                self._open.pop(next(iter(self._open)))
            self._open[number] = open_shard(self.files[number])
        return self._open[number]

    def _decoded(self, log_probs: np.ndarray, tail: np.ndarray) -> Tensor:
        """float32 [b, k + 1] or [b, k] whose probabilities add up to 1 again, after the rounding to
        float16."""
        parts = [log_probs, tail[:, None]] if log_probs.shape[1] < self.num_classes else [log_probs]
        return torch.from_numpy(np.concatenate(parts, 1)).float().log_softmax(-1)


class TaughtBatches(ViewBatches):
    """Makes batches of views with their labels; the rest is as of `ViewBatches`.

    Args:
        count: stored views of an image; those of higher numbers are fresh.
    """

    def __init__(self, views: ViewBatches, stored: Labels, count: int) -> None:
        super().__init__(views.sources, views.view, views.labels)
        self.stored, self.count = stored, count

    def __call__(self, rows: Rows) -> TaughtBatch:
        """A batch of rows int64 [b, 3 or 4]: source, index, view."""
        batch = super().__call__(rows)
        fresh = rows[:, 2] >= self.count
        views = np.where(fresh, 0, rows[:, 2])
        classes, log_probs = self.stored(image_numbers(self.sources, rows).numpy(), views)
        log_probs[torch.from_numpy(fresh)] = 0.0
        known = ~log_probs.isnan().any(-1)
        log_probs[~known] = 0.0  # 0 times NaN would be NaN
        fields = {**vars(batch), "weight": batch.weight * known}
        waiting = np.flatnonzero(fresh).tolist()
        return TaughtBatch(**fields, classes=classes, log_probs=log_probs, fresh=waiting)


class Cycle:
    """An order whose views are stored ones.

    In each `views` passes every sample is seen in each of its views once, in an order of its own
    that the next passes do not repeat: a function of seed, source, index and pass alone.

    Args:
        fresh: share of samples that have a fresh view instead, of a number from `views` on.
    """

    def __init__(self, order: Order, views: int, seed: int, fresh: float = 0.0) -> None:
        self.order, self.views, self.fresh = order, views, fresh
        self.samples_per_epoch = order.samples_per_epoch
        digest = hashlib.blake2b(f"{seed}/views".encode(), digest_size=8).digest()
        self._key = np.frombuffer(digest, np.uint64)[0]

    def draw(self, start: int, stop: int) -> np.ndarray:
        """See `Order`."""
        rows = self.order.draw(start, stop).copy()
        passes = rows[:, 2].copy()
        turn, place = np.divmod(passes, self.views)
        draws = self._mixed(rows[:, 0], rows[:, 1], turn)[:, None]
        draws = _mixed(draws + np.arange(self.views, dtype=np.uint64))  # [b, views]
        rows[:, 2] = np.argsort(draws, axis=1, kind="stable")[np.arange(len(rows)), place]
        if self.fresh:
            chance = self._mixed(rows[:, 0], rows[:, 1], ~passes) / 2.0**64
            rows[:, 2] = np.where(chance < self.fresh, self.views + passes, rows[:, 2])
        return rows

    def _mixed(self, *numbers: np.ndarray) -> np.ndarray:
        """A draw for each row of int64 [b] columns, uint64 [b]."""
        draws = np.full(len(numbers[0]), self._key, np.uint64)
        for column in numbers:
            draws = _mixed(draws ^ column.astype(np.uint64))
        return draws


def _mixed(x: np.ndarray) -> np.ndarray:
    """splitmix64 (Steele et al. 2014, "Fast splittable pseudorandom number generators"): uint64 to
    uint64, one to one, every bit of which depends on all."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
