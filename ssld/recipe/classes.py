"""Whether the classes of all stages of a recipe go together, asked before the first step.

The first stage asks that of itself at its start. A later one is opened here as far as its classes
need it: not at all where it has the teacher, or the labels, of the stage before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ssld.data.labels import TRANSFER, ClassTable, class_names, differ, misfit
from ssld.distill.config import DistillConfig, RunConfig
from ssld.distill.stage_config import FinetuneConfig

if TYPE_CHECKING:
    from ssld.data.source import Source


@dataclass
class _Stage:
    name: str
    config: RunConfig

    @property
    def teachers(self) -> list[Any]:
        """Settings of its teachers; empty where it learns from labels."""
        config = self.config
        human = isinstance(config, FinetuneConfig) and config.targets == "human"
        if human or not isinstance(config, DistillConfig):
            return []
        return config.teachers or [config.teacher]

    @property
    def labels(self) -> tuple[Any, ...]:
        return self.config.data.labeled, self.config.data.val


def check_classes(configs: Sequence[tuple[str, Any]]) -> Iterator[str]:
    """A sentence for each stage after the first whose classes do not fit, nothing where all do.

    Args:
        configs: (stage, its settings as they are before anything is resolved), in order.

    Raises:
        InputError: a source or a network that cannot be opened.
    """
    stages = [_Stage(name, config) for name, config in configs]
    for before, stage in zip(stages, stages[1:], strict=False):
        number = stage.config.student.num_classes
        asked = number if number != before.config.student.num_classes else None
        val = stage.config.data.val
        by_top1 = stage.config.checkpoint.best == "top1" and val != before.config.data.val
        same = asked is None and before.teachers == stage.teachers
        if same and stage.teachers and not by_top1:
            continue
        if asked is None and not before.teachers and before.labels == stage.labels:
            continue
        student = _student(stages[: stages.index(stage)])
        problem = _problem(stage, student, asked)
        if problem:
            yield f"{stage.name}: {problem}"


def _problem(stage: _Stage, student: ClassTable, asked: int | None) -> str | None:
    if stage.teachers:
        teacher = _teacher(stage)
        number = student if asked is None else ClassTable("the student", asked, None)
        found = differ(number, teacher)
        if found:
            return f"{found}: take teacher and number of classes as in the stage before; {TRANSFER}"
        if stage.config.checkpoint.best != "top1":
            return None  # no label is read
        found = misfit(teacher, _sources(stage)["data.val"], "data.val")
        return found and f"{found}, and checkpoint.best is top1: give another data.val or best"
    if asked is not None and asked != student.count:  # a new classifier
        student = ClassTable("the new classifier", asked, None)
    for setting, sources in _sources(stage).items():
        found = misfit(student, sources, setting)
        if found:
            return f"{found}: {_advice(stage, student, sources)}"
    return None


def _advice(stage: _Stage, student: ClassTable, sources: Sequence[Source]) -> str:
    """What helps; labels as numbers would take the first flower for the first class of all."""
    named = class_names(sources)
    new = len(named) if named else None
    if stage.name == "finetune" and new and new != student.count:
        own = f"finetune.student.num_classes {new} gives it a new classifier for these"
        return f"{own}; {TRANSFER}"
    return f"give images of the student's classes; {TRANSFER}"


def _student(stages: Sequence[_Stage]) -> ClassTable:
    """The classes of what these stages, one after the other, make."""
    *earlier, last = stages
    if last.teachers:
        found = _teacher(last)
        return ClassTable("the student", found.count, found.names)
    number = last.config.student.num_classes
    if earlier and number in (None, earlier[-1].config.student.num_classes):
        return _student(earlier)
    named = class_names(_sources(last)["data.labeled"])
    return ClassTable("the student", number or len(named or ()), named)


def _teacher(stage: _Stage) -> ClassTable:
    from ssld.data.labels import table_of
    from ssld.models.teacher import open_teacher

    return table_of("the teacher", open_teacher(stage.teachers, "fp32")[0])


def _sources(stage: _Stage) -> dict[str, list[Source]]:
    from ssld.data.sources import open_source

    labeled, val = ([open_source(path) for path in paths] for paths in stage.labels)
    return {"data.labeled": labeled, "data.val": val}
