"""Batches of images with masks, made by loader processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from downstream.segmentation.data.masks import MaskSource
from downstream.segmentation.data.transforms import EvalMaskView, TrainMaskView
from downstream.segmentation.losses import IGNORE
from ssld.common.errors import one_line
from ssld.data.decode import Unreadable
from ssld.data.loading import GREY
from ssld.data.unreadable import Entry
from ssld.data.workers import Rows

GREY_PX = 32
"""Side of what stands in for an unreadable held-out image; its weight is 0."""


@dataclass(frozen=True)
class MaskBatch:
    """One forward pass of one process."""

    images: Tensor
    """uint8 [b, h, w, 3]."""
    masks: Tensor
    """uint8 [b, h, w]: class numbers, IGNORE where nothing counts."""
    numbers: Tensor
    """int64 [b]: which held-out image it is; -1 in training."""
    weight: Tensor
    """float32 [b]: 1, or 0 for an unreadable image."""
    ids: list[str]
    unreadable: list[Entry]

    def map(self, function: Callable[[Tensor], Tensor]) -> MaskBatch:
        """The same batch with each of its tensors replaced."""
        tensors = ("images", "masks", "numbers", "weight")
        return replace(self, **{name: function(getattr(self, name)) for name in tensors})

    def pin_memory(self) -> MaskBatch:
        """Called by the loader: page-locked memory is copied to a GPU without waiting."""
        return self.map(Tensor.pin_memory)


class MaskBatches:
    """Makes the batch of views that rows ask for.

    Args:
        view: of training images, all of one size, or of held-out ones, which come one by one.
    """

    def __init__(self, sources: Sequence[MaskSource], view: TrainMaskView | EvalMaskView) -> None:
        self.sources = list(sources)
        self.view = view
        self.first = [sum(map(len, self.sources[:i])) for i in range(len(self.sources))]

    def __call__(self, rows: Rows) -> MaskBatch:
        """
        Args:
            rows: int64 [b, 4].
        """
        training = isinstance(self.view, TrainMaskView)
        size = self.view.augment.crop if isinstance(self.view, TrainMaskView) else (GREY_PX,) * 2
        images, masks, numbers, ids, unreadable = [], [], [], [], []
        weight = torch.ones(len(rows))
        for i, (number, index, view, batch) in enumerate(rows.tolist()):
            source = self.sources[number]
            ids.append(source.sample_id(index))
            numbers.append(-1 if training else self.first[number] + index)
            try:
                image, mask = self.view(source, index, view, batch)
            except (OSError, Unreadable) as error:
                reason = one_line(error)
                unreadable.append((number, ids[-1], source.location(index), reason))
                weight[i] = 0.0
                image = torch.full((*size, 3), GREY, dtype=torch.uint8)
                mask = torch.full(size, IGNORE, dtype=torch.uint8)
            images.append(image)
            masks.append(mask)
        return MaskBatch(
            torch.stack(images), torch.stack(masks), torch.tensor(numbers), weight, ids, unreadable
        )
