"""Is the teacher better than chance? Asked before the first step, where labels are at hand."""

from __future__ import annotations

from typing import Any

from ssld.common.errors import InputError
from ssld.common.metrics import near_chance, too_few, wilson
from ssld.data.labels import has_labels, known_index, unknown_labels
from ssld.data.loading import Batch, ViewBatches, eval_batches
from ssld.data.source import Source
from ssld.data.transforms import eval_view
from ssld.data.unreadable import Unreadables
from ssld.distill.setup import Data
from ssld.health.evaluate import accuracy
from ssld.models.teacher import CURE, Teacher, constant, without_numbers

ANSWERED_IMAGES = 16
"""Training images that every teacher answers before the first step."""
VERIFY_IMAGES = 1000
"""Images on which the teacher is checked before the first step."""


def verify_teacher(data: Data, teacher: Teacher) -> dict[str, Any]:
    """Look at a few of its answers, and measure its top-1 on labeled images, where there are any
    that it can know; each in the precision that it has in training.

    Returns:
        what run.json says of it: teacher_top1, where it could be measured.

    Raises:
        InputError: what it predicts are no numbers; it is near chance, or says the same of all
            images, and `teacher.verify` is on.
    """
    teacher.to(data.accelerator.device)
    check_answers(data, teacher)
    sources = data.val if has_labels(data.val) else data.labeled
    problem = unknown_labels(sources, teacher, VERIFY_IMAGES)
    if problem:
        data.accelerator.print(f"teacher: not verified, {problem}")
        return {}
    hits, count = _hits(data, teacher, sources)
    verify = all(config.verify for config in teacher.configs)
    data.accelerator.print(f"teacher: {judge(hits, count, teacher.num_classes, verify)}")
    low, high = wilson(hits, count)
    top1 = {"hits": hits, "images": count, "low": low, "high": high}
    return {"teacher_top1": top1} if count else {}


def check_answers(data: Data, teacher: Teacher) -> None:
    """Let every teacher answer a few training images before the first step.

    Raises:
        InputError: one predicts no numbers; or the same for all images and `teacher.verify` is on.
    """
    batch = _some_images(data, teacher)
    if batch is None:
        return
    problem = without_numbers(teacher, batch)
    if problem:
        raise InputError(f"{problem}; {CURE}")
    readable = batch.weight > 0
    for name, answers, config in zip(
        teacher.names, teacher.answers(batch.images), teacher.configs, strict=True
    ):
        if not constant(answers[readable], batch.images[readable]):
            continue
        problem = f"the {name} predicts exactly the same for {int(readable.sum())} different images"
        if config.verify:
            raise InputError(
                f"{problem}: a student would learn that and nothing else; check "
                "teacher.checkpoint, teacher.mean and teacher.std, or set teacher.verify "
                "to false if you know better"
            )
        data.accelerator.print(f"warning: {problem}")


def _some_images(data: Data, teacher: Teacher) -> Batch | None:
    """The same on all processes, so that all come to the same end."""
    network = teacher.networks[0]
    batches = eval_batches(
        ViewBatches(data.trained, eval_view(network)),
        batch_size=ANSWERED_IMAGES,
        workers=0,
        device=data.accelerator.device,
        unreadables=Unreadables(data.trained, 1.0),
        limit=ANSWERED_IMAGES,
        mixed=teacher.needs_mixed_batches,
    )
    return next((batch for batch in batches if (batch.weight > 0).any()), None)


def _hits(data: Data, teacher: Teacher, sources: list[Source]) -> tuple[int, int]:
    network = teacher.networks[0]
    config, accelerator = data.config, data.accelerator
    batches = eval_batches(
        ViewBatches(sources, eval_view(network), known_index(sources, teacher)),
        batch_size=min(config.batch_size, 256),
        workers=config.data.workers,
        device=accelerator.device,
        unreadables=Unreadables(sources, config.data.max_unreadable),
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        limit=VERIFY_IMAGES,
        mixed=teacher.needs_mixed_batches,
        description="verify teacher",
    )
    measured = accuracy(teacher, batches)
    measured.reduce(accelerator, cut_short=False)
    return measured.counted("top1")


def judge(hits: int, count: int, num_classes: int, verify: bool) -> str:
    """What is to be said of a teacher that is right on `hits` of `count` labeled images.

    Raises:
        InputError: it is near chance and `verify` is on.
    """
    if count == 0:
        return "not verified, no labeled image could be read"
    low, high = wilson(hits, count)
    top1 = f"top-1 {hits / count:.2%} [{low:.2%} to {high:.2%}] on {count} labeled images"
    if too_few(count, num_classes):
        return f"{top1}: too few to tell it from chance"
    if verify and near_chance(low, num_classes):
        raise InputError(
            f"the teacher is near chance: {top1}, chance {1 / num_classes:.2%}; `ssld plan` with "
            "the same settings says whether another normalisation or class order would do; check "
            "teacher.checkpoint, teacher.mean, teacher.std and teacher.input_size, or set "
            "teacher.verify to false if you know better"
        )
    return top1
