"""A detector whose losses are of labeled and unlabeled images in one call: so gradients of all of a
step's passes are averaged over the processes once, and rightly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from downstream.dense.model import running_statistics_kept
from downstream.detection.model import DetectionModel
from downstream.sed.config import ConsistencyConfig
from downstream.sed.consistency import unlabeled_losses


@dataclass(frozen=True)
class Unlabeled:
    """A part of a step without annotations."""

    weak: Tensor
    """uint8 [u, h, w, 3]."""
    strong: Tensor
    """uint8 [u, h, w, 3]."""
    sizes: Tensor
    """int64 [u, 2], the (h, w) of each that is picture."""
    scale: int
    """s."""
    teacher: nn.Module
    """The average of the detector."""
    settings: ConsistencyConfig


class SedModel(DetectionModel):
    """Also takes unlabeled images, and gives their losses besides."""

    def forward(
        self,
        images: Tensor,
        sizes: Tensor,
        targets: list[dict[str, Tensor]] | None = None,
        unlabeled: Unlabeled | None = None,
    ) -> Any:
        """As of `DetectionModel`; with `unlabeled` the losses of labeled images, {term: float32
        [b]}, and those of unlabeled ones, {term: float32 [u]}."""
        found = super().forward(images, sizes, targets)
        if unlabeled is None:
            return found
        # The cells of an image and of it at 1 / 2^s of its size lie on each other.
        multiple = self.stride * 2**unlabeled.scale
        weak, strong = (
            self._padded(x, unlabeled.sizes, multiple) for x in (unlabeled.weak, unlabeled.strong)
        )
        # Else they would be in part those of noise and of half the size, and the teacher's, too.
        with running_statistics_kept(self.model):
            return found, unlabeled_losses(
                self.model,
                unlabeled.teacher,
                weak,
                strong,
                unlabeled.sizes,
                s=unlabeled.scale,
                settings=unlabeled.settings,
            )
