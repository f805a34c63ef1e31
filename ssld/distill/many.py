"""Several students in one distillation (`students`): opened, described and checked one after the
other, and each with a run of its own, before any of them trains. How they train is
`ssld/engine/together.py`; which settings are whose, `ssld/distill/students.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from accelerate.utils import broadcast_object_list

from ssld.common.errors import InputError
from ssld.data.labels import ClassTable
from ssld.distill.config import DistillConfig
from ssld.distill.setup import ClassifierRun, Data, describe, open_student, start_run
from ssld.distill.students import is_complete, students_of
from ssld.engine.processes import open_accelerator, open_processes
from ssld.labels.label_set import LabelSet
from ssld.models.classifier import Classifier
from ssld.models.teacher import Teacher

SHARED_FACTS = ("data_sha256", "val_sha256", "peak_flops")
"""What the first run finds out for all."""


@dataclass(frozen=True)
class Member:
    """One of several students."""

    name: str
    config: DistillConfig
    data: Data
    """That of all, with its own settings and accelerator: loss scale and trackers are its own."""
    student: Classifier
    facts: dict[str, Any]


def unfinished(config: DistillConfig) -> dict[str, DistillConfig]:
    """The settings of each student that has something left to do, by name; all processes agree.

    Raises:
        InputError: see `ssld.distill.students`.
    """
    students, done = students_of(config), [set()]
    if open_processes().is_main_process:
        done = [{name for name, one in students.items() if is_complete(one)}]
        for name in sorted(done[0]):
            print(f"{name}: complete and unchanged, skipped", flush=True)
    broadcast_object_list(done)
    return {name: one for name, one in students.items() if name not in done[0]}


def open_members(
    data: Data,
    students: dict[str, DistillConfig],
    classes: Callable[[DistillConfig], ClassTable],
) -> list[Member]:
    """Open every student.

    Args:
        classes: what a student of these settings has to tell apart.

    Raises:
        InputError: weights that are missing or do not fit; students of different input sizes.
    """
    members = []
    for name, config in students.items():
        data.accelerator.print(f"{name}:")
        own = replace(data, config=config, accelerator=open_accelerator(config))
        student = open_student(own, config.student, classes(config))
        facts = describe(data.accelerator, {"student": student})
        members.append(Member(name, config, own, student, facts))
    sizes = {member.name: member.student.input_size for member in members}
    if len(set(sizes.values())) > 1:
        seen = ", ".join(f"{name} {size} px" for name, size in sizes.items())
        raise InputError(
            f"students see the same views, but their networks' own sizes differ ({seen}): set "
            "augment.size"
        )
    return members


def start_members(
    members: Sequence[Member],
    facts: dict[str, Any],
    *,
    teacher: Teacher | None = None,
    stored: LabelSet | None = None,
) -> list[ClassifierRun]:
    """Create or go on in every run folder; see `ssld.distill.setup.start_run`.

    Args:
        facts: what run.json says of what they have in common.

    Raises:
        InputError: one of them is refused; the folders of all are free again.
    """
    runs: list[ClassifierRun] = []
    flops = facts.get("flops_per_image", 0.0)
    try:
        for member in members:
            own = {"flops_per_image": flops + member.facts["flops_per_image"]}
            shared = {key: runs[0].facts[key] for key in SHARED_FACTS} if runs else {}
            facts_of_run = {**facts, **member.facts, **own, **shared}
            runs.append(
                start_run(
                    member.data,
                    member.student,
                    facts_of_run,
                    teacher=teacher,
                    stored=stored,
                    name=member.name,
                )
            )
    except BaseException:
        for run in runs:
            run.folder.unlock()
        raise
    return runs
