"""A teacher of several students, which is asked once about each batch."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor

from ssld.models.teacher import Teacher


class _Answer(NamedTuple):
    images: Tensor
    temperature: float
    log_probs: Tensor
    features: list[Tensor]
    faulty: Tensor

    def is_of(self, images: Tensor, temperature: float) -> bool:
        return self.images is images and self.temperature == temperature


class SharedTeacher(Teacher):
    """The same networks, with a memory of what they said of the very same tensors of images.

    Args:
        teacher: whose networks these are.
        kept: batches that are remembered: those of a step.
        with_features: features are asked for with the predictions, as a student will want them.
    """

    def __init__(self, teacher: Teacher, *, kept: int, with_features: bool) -> None:
        super().__init__(teacher.networks, teacher.configs)
        self._asks_features = with_features
        self._kept: deque[_Answer] = deque(maxlen=kept)

    @torch.no_grad()
    def forward(
        self, images: Tensor, temperature: float = 1.0, with_features: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """See `Teacher.forward`."""
        if torch.is_inference_mode_enabled():  # an evaluation: each student has its own batches
            return super().forward(images, temperature, with_features)
        answer = next((x for x in self._kept if x.is_of(images, temperature)), None)
        if answer is None or (with_features and not answer.features):
            asks = with_features or self._asks_features
            said = super().forward(images, temperature, asks)
            log_probs, features = said if isinstance(said, tuple) else (said, [])
            answer = _Answer(images, temperature, log_probs, features, self.faulty)
            self._kept.append(answer)
        self.faulty = answer.faulty
        return (answer.log_probs, answer.features) if with_features else answer.log_probs
