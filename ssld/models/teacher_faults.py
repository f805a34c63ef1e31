"""A teacher whose predictions cannot be targets: no numbers, or the same for every image.

Looked for on a few images before the first step, and named when a loss is not finite: the learning
rate is not to blame then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssld.common.errors import InputError
from ssld.data.loading import Batch
from ssld.models.teacher import Teacher

if TYPE_CHECKING:
    from ssld.distill.setup import Setup

CHECKED = 16
"""Training images that every teacher answers before the first step."""
FEWEST = 8
"""Different images, below which that all answers are the same proves nothing."""
DIFFERENT = 1.0
"""Mean difference of pixels in 0..255, from which on two images are different."""
SAME = 1e-6
"""Difference of log-probabilities that is float32's rounding."""
NAMED = 8
"""Samples that a message names."""


def samples(ids: Sequence[str]) -> str:
    """Some sample ids as text."""
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return f"{', '.join(ids[:NAMED])}{more}"


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
    different = (pixels - pixels[:1]).abs().mean((1, 2, 3)) > DIFFERENT
    if int(different.sum()) < FEWEST:
        return False
    finite = log_probs.clamp(min=-1e5)
    return bool(torch.allclose(finite, finite[:1].expand_as(finite), rtol=SAME, atol=SAME))


def said_of(names: Sequence[str], faults: Tensor, weight: Tensor, ids: Sequence[str]) -> str | None:
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
    """`said_of` a batch that the teacher has not answered yet."""
    teacher.each(batch.images if batch.other_images is None else batch.other_images)
    return said_of(teacher.names, teacher.faulty, batch.weight, batch.ids)


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
        found = said_of(teacher.names, teacher.faulty, batch.weight, batch.ids)
        found = found or "the teacher's predictions are not finite"
        raise InputError(f"{found}; {CURE}, or look at these images")


def check_answers(setup: Setup, teacher: Teacher) -> None:
    """Let every teacher answer a few training images before the first step.

    Raises:
        InputError: one predicts no numbers; or the same for all images and `teacher.verify` is on.
    """
    batch = _some_images(setup, teacher)
    if batch is None:
        return
    problem = without_numbers(teacher, batch)
    if problem:
        raise InputError(f"{problem}; {CURE}")
    readable = batch.weight > 0
    for name, log_probs, config in zip(
        teacher.names, teacher.each(batch.images), teacher.configs, strict=True
    ):
        if not constant(log_probs[readable], batch.images[readable]):
            continue
        said = f"the {name} predicts exactly the same for {int(readable.sum())} different images"
        if config.verify:
            raise InputError(
                f"{said}: a student would learn that and nothing else; check teacher.checkpoint, "
                "teacher.mean and teacher.std, or set teacher.verify to false if you know better"
            )
        setup.accelerator.print(f"warning: {said}")


def _some_images(setup: Setup, teacher: Teacher) -> Batch | None:
    """The same on all processes, so that all come to the same end."""
    from ssld.data.eval_view import eval_view
    from ssld.data.unreadable import Unreadables, eval_batches

    network = teacher.networks[0]
    batches = eval_batches(
        setup.sources,
        eval_view(network),
        batch_size=CHECKED,
        workers=0,
        device=setup.device,
        unreadables=Unreadables(setup.sources, 1.0),
        label_index=None,
        limit=CHECKED,
        mixed=teacher.needs_mixed_batches,
    )
    return next((batch for batch in batches if (batch.weight > 0).any()), None)
