"""Whether the classes of all stages of a recipe go together, asked before the first step.

The first stage asks that of itself at its start. A later one is opened here as far as its classes
need it: not at all where it has the teacher, or the labels, of the stage before.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ssld.data.labels import (
    NO_CLASSES,
    TRANSFER,
    ClassTable,
    class_names,
    differ,
    misfit,
    table_of,
)
from ssld.data.source import Source
from ssld.data.sources import open_source
from ssld.distill.config import DistillConfig, SupervisedConfig
from ssld.models.teacher import open_teacher


@dataclass
class _Stage:
    name: str
    config: DistillConfig | SupervisedConfig

    @property
    def paths(self) -> dict[str, list[str]]:
        """Of the sources that may have labels, by setting."""
        data = self.config.data
        return {"data.labeled": list(data.labeled), "data.val": list(data.val)}


class _Opened:
    """Sources and teachers, each opened once for all stages."""

    def __init__(self) -> None:
        self._source = functools.cache(open_source)
        self._teachers: dict[str, ClassTable] = {}

    def sources(self, paths: Sequence[str]) -> list[Source]:
        return [self._source(path) for path in paths]

    def teacher(self, stage: _Stage) -> ClassTable:
        if isinstance(stage.config, DistillConfig) and stage.config.features_alone:
            return NO_CLASSES
        key = repr(stage.config.taught_by)
        if key not in self._teachers:
            teacher, _ = open_teacher(stage.config.taught_by, "fp32")
            self._teachers[key] = table_of("the teacher", teacher)
        return self._teachers[key]

    def student(self, stages: Sequence[_Stage]) -> ClassTable:
        """The classes of what these stages, one after the other, make."""
        *earlier, last = stages
        if last.config.taught_by:
            teacher = self.teacher(last)
            return ClassTable("the student", teacher.count, teacher.names)
        number = last.config.student.num_classes
        if earlier and number in (None, earlier[-1].config.student.num_classes):
            return self.student(earlier)
        names = class_names(self.sources(last.paths["data.labeled"]))
        return ClassTable("the student", number or len(names or ()), names)


def check_classes(configs: Iterable[tuple[str, Any]]) -> Iterator[str]:
    """A sentence for each stage after the first whose classes do not fit, nothing where all do.

    Args:
        configs: (stage, its settings as they are before anything is resolved), in order.

    Raises:
        InputError: a source or a network that cannot be opened.
    """
    stages, opened = [_Stage(name, config) for name, config in configs], _Opened()
    for i, (before, stage) in enumerate(zip(stages, stages[1:], strict=False), 1):
        number = stage.config.student.num_classes
        requested = number if number != before.config.student.num_classes else None
        val = stage.config.data.val
        by_top1 = stage.config.checkpoint.best == "top1" and val != before.config.data.val
        same = requested is None and before.config.taught_by == stage.config.taught_by
        if same and stage.config.taught_by and not by_top1:
            continue
        if requested is None and not before.config.taught_by and before.paths == stage.paths:
            continue
        problem = _problem(stage, opened, opened.student(stages[:i]), requested)
        if problem:
            yield f"{stage.name}: {problem}"


def _problem(
    stage: _Stage, opened: _Opened, student: ClassTable, requested: int | None
) -> str | None:
    if stage.config.taught_by:
        teacher = opened.teacher(stage)
        table = student if requested is None else ClassTable("the student", requested, None)
        problem = differ(table, teacher)
        if problem:
            return (
                f"{problem}: take teacher and number of classes as in the stage before; {TRANSFER}"
            )
        if stage.config.checkpoint.best != "top1":
            return None  # no label is read
        problem = misfit(teacher, opened.sources(stage.paths["data.val"]), "data.val")
        return problem and f"{problem}, and checkpoint.best is top1: give another data.val or best"
    if requested is None and not student.count:
        return None  # features alone were learned: a classifier is made for these labels
    if requested is not None and requested != student.count:
        student = ClassTable("the new classifier", requested, None)
    for setting, paths in stage.paths.items():
        sources = opened.sources(paths)
        problem = misfit(student, sources, setting)
        if problem:
            return f"{problem}: {_advice(stage, student, sources)}"
    return None


def _advice(stage: _Stage, student: ClassTable, sources: Sequence[Source]) -> str:
    """What helps; labels as numbers would take the first flower for the first class of all."""
    count = len(class_names(sources) or ())
    if stage.name == "finetune" and count not in (0, student.count):
        own = f"finetune.student.num_classes {count} gives it a new classifier for these"
        return f"{own}; {TRANSFER}"
    return f"give images of the student's classes; {TRANSFER}"
