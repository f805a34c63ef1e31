"""Is the teacher better than chance? Asked before the first step, where labels are at hand."""

from __future__ import annotations

from ssld.common.errors import InputError
from ssld.data.eval_view import eval_view
from ssld.data.labels import has_labels, known_index, unknown_labels
from ssld.data.source import Source
from ssld.data.unreadable import Unreadables, eval_batches
from ssld.distill.setup import Setup
from ssld.health.evaluate import accuracy
from ssld.health.intervals import near_chance, too_few, wilson
from ssld.models.teacher import Teacher
from ssld.models.teacher_faults import check_answers

VERIFY_IMAGES = 1000
"""Images on which the teacher is checked before the first step."""


def verify_teacher(setup: Setup, teacher: Teacher) -> None:
    """Look at a few of its answers, and measure its top-1 on labeled images, where there are any
    that it can know; each in the precision that it has in training.

    Raises:
        InputError: what it predicts are no numbers; it is near chance, or says the same of all
            images, and `teacher.verify` is on.
    """
    teacher.to(setup.device)
    check_answers(setup, teacher)
    sources = setup.val if has_labels(setup.val) else setup.labeled
    problem = unknown_labels(sources, teacher, VERIFY_IMAGES)
    if problem:
        setup.accelerator.print(f"teacher: not verified, {problem}")
        return
    hits, count = _hits(setup, teacher, sources)
    low, high = wilson(hits, count)
    if count:
        setup.facts["teacher_top1"] = {"hits": hits, "images": count, "low": low, "high": high}
    verify = all(config.verify for config in teacher.configs)
    setup.accelerator.print(f"teacher: {judge(hits, count, teacher.num_classes, verify)}")


def _hits(setup: Setup, teacher: Teacher, sources: list[Source]) -> tuple[int, int]:
    network = teacher.networks[0]
    config = setup.config
    batches = eval_batches(
        sources,
        eval_view(network),
        batch_size=min(config.batch_size, 256),
        workers=config.data.workers,
        device=setup.device,
        unreadables=Unreadables(sources, config.data.max_unreadable),
        label_index=known_index(sources, teacher),
        rank=setup.rank,
        world=setup.world,
        limit=VERIFY_IMAGES,
        mixed=teacher.needs_mixed_batches,
        description="verify teacher",
    )
    tally = accuracy(teacher, batches)  # type: ignore[arg-type]
    tally.reduce(setup.accelerator, cut_short=False)
    return tally.counted("top1")


def judge(hits: int, count: int, num_classes: int, verify: bool) -> str:
    """What is to be said of a teacher that is right on `hits` of `count` labeled images.

    Raises:
        InputError: it is near chance and `verify` is on.
    """
    if count == 0:
        return "not verified, no labeled image could be read"
    low, high = wilson(hits, count)
    said = f"top-1 {hits / count:.2%} [{low:.2%} to {high:.2%}] on {count} labeled images"
    if too_few(count, num_classes):
        return f"{said}: too few to tell it from chance"
    if verify and near_chance(low, num_classes):
        raise InputError(
            f"the teacher is near chance: {said}, chance {1 / num_classes:.2%}; `ssld plan` with "
            "the same settings says whether another normalisation or class order would do; check "
            "teacher.checkpoint, teacher.mean, teacher.std and teacher.input_size, or set "
            "teacher.verify to false if you know better"
        )
    return said
