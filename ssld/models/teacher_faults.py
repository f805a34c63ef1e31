"""A teacher whose predictions cannot be targets: no numbers, or the same for every image.

Looked for on a few images before the first step, and named when a loss is not finite: the learning
rate is not to blame then.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssld.common.errors import InputError
from ssld.data.loading import Batch
from ssld.models.teacher import Teacher

MIN_DIFFERENT_IMAGES = 8
"""Different images, below which that all answers are the same proves nothing."""
PIXEL_DIFFERENCE = 1.0
"""Mean difference of pixels in 0..255, from which on two images are different."""
SAME_LOG_PROB = 1e-6
"""Difference of log-probabilities that is float32's rounding."""
SAMPLES_NAMED = 8
"""Samples that a message names."""


def samples(ids: Sequence[str]) -> str:
    """Some sample ids as text."""
    more = f" and {len(ids) - SAMPLES_NAMED} more" if len(ids) > SAMPLES_NAMED else ""
    return f"{', '.join(ids[:SAMPLES_NAMED])}{more}"


def not_finite(log_probs: Tensor) -> Tensor:
    """bool [..., b]: which rows of float [..., b, classes] are no distribution; see
    `Teacher.faulty`."""
    return log_probs.isnan().any(-1)


def constant(log_probs: Tensor, images: Tensor) -> bool:
    """Whether images that differ all get one answer.

    Args:
        log_probs: float [b, classes].
        images: uint8 [b, h, w, 3].
    """
    pixels = images.float()
    different = (pixels - pixels[:1]).abs().mean((1, 2, 3)) > PIXEL_DIFFERENCE
    if int(different.sum()) < MIN_DIFFERENT_IMAGES:
        return False
    finite = log_probs.clamp(min=-1e5)
    return bool(
        torch.allclose(finite, finite[:1].expand_as(finite), rtol=SAME_LOG_PROB, atol=SAME_LOG_PROB)
    )


def describe_faults(
    names: Sequence[str], faults: Tensor, weight: Tensor, ids: Sequence[str]
) -> str | None:
    """Which network of a teacher predicts no numbers, and for which readable samples, or None.

    Args:
        faults: bool [networks, b]; see `Teacher.faulty`.
        weight: float [b], 0 for what could not be read.
    """
    for name, faulty in zip(names, faults, strict=True):
        rows: list[int] = (faulty & (weight > 0)).nonzero().flatten().tolist()
        if rows:
            return (
                f"the {name}'s predictions are not finite (NaN or infinite) for the samples "
                f"{samples([ids[i] for i in rows])}"
            )
    return None


def without_numbers(teacher: Teacher, batch: Batch) -> str | None:
    """`describe_faults` a batch that the teacher has not answered yet."""
    teacher.each(batch.images if batch.other_images is None else batch.other_images)
    return describe_faults(teacher.names, teacher.faulty, batch.weight, batch.ids)


CURE = (
    "check teacher.checkpoint, and set teacher.dtype to fp32 or bf16 where it is fp16, which "
    "overflows beyond 65,504"
)


def require_numbers(teacher: Teacher, batch: Batch, log_probs: Tensor) -> None:
    """
    Raises:
        InputError: some of what the teacher predicted, float [b, classes], are no numbers.
    """
    if (not_finite(log_probs) & (batch.weight > 0)).any():
        problem = describe_faults(teacher.names, teacher.faulty, batch.weight, batch.ids)
        problem = problem or "the teacher's predictions are not finite"
        raise InputError(f"{problem}; {CURE}, or look at these images")
