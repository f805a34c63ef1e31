"""The second stage: `accelerate launch -m ssld.finetune --run RUN --out OUT [--a.b value ...]`.

Cui et al. 2021 (SSLD), section 4.2: "for further improvement, we finetune the student with only
labeled data for extra 30 epochs". The labeled *set*: the reference implementation keeps the
teacher's predictions as targets there; `targets: human` takes the words literally. All else is as
in the run that it goes on from, at a hundredth of its learning rate (`ssld/distill/parent_run.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ssld.common.errors import InputError
from ssld.distill.config import FinetuneConfig
from ssld.distill.distill import Distillation, distillation, open_networks
from ssld.distill.parent_run import ParentRun, differences, lineage, open_parent_run
from ssld.distill.setup import Data, describe, open_data, open_student, start_run
from ssld.distill.supervised import Supervision
from ssld.distill.verify_teacher import verify_teacher
from ssld.engine import checkpoint
from ssld.engine.loop import train
from ssld.engine.start import fingerprint
from ssld.models.classifier import Classifier
from ssld.models.teacher import Teacher

TOO_FEW_HELD_OUT = 100
"""Held-out images below which one of them is more than a point."""


@dataclass(frozen=True)
class Stage:
    """What a stage after the first trains, and on what."""

    data: Data
    student: Classifier
    teacher: Teacher | None
    task: Distillation | Supervision
    facts: dict[str, Any]


def finetune(config: FinetuneConfig) -> None:
    """Train a run's student on, on the labeled set; export and report into `config.out`.

    Raises:
        InputError: a run that has not finished, bad settings or sources; nothing was written then.
    """
    stage = prepare(config, open_parent_run(config.run))
    run = start_run(stage.data, stage.student, stage.facts, teacher=stage.teacher)
    train(run, stage.task, stage.student)


def prepare(config: FinetuneConfig, parent: ParentRun) -> Stage:
    """Open everything that a stage needs, and say what it goes on from and what differs.

    Raises:
        InputError: what is missing or does not fit; nothing is written.
    """
    data = open_data(config, train_unlabeled=False)
    for line in differences(parent, config):
        data.accelerator.print(line)
    facts = {"started_from": lineage(parent), "start_sha256": parent.student_sha256()}
    _warn_of_seen_images(data, parent)
    if not config.taught_by:
        student = open_student(data, config.student, keep_classes=True)
        facts |= describe(data.accelerator, {"student": student})
        return Stage(data, student, None, Supervision(student.num_classes), facts)
    student, teacher, described = open_networks(data, config, keep_classes=True)
    facts |= described | verify_teacher(data, teacher)
    task = distillation(config, teacher, student)
    if task.projection is not None:
        _take_projection(parent, task.projection)
    return Stage(data, student, teacher, task, facts)


def _take_projection(parent: ParentRun, projection: nn.Module) -> None:
    """Go on with the one that the exported student was trained with, where there was one; the
    parent run has it in the checkpoint of that step alone.

    Raises:
        InputError: that checkpoint is gone or damaged, or of another teacher.
    """
    if not (parent.settings.get("features") or {}).get("weight"):
        return
    folder = checkpoint.at(Path(parent.run) / "checkpoints", parent.exported["step"])
    problem = checkpoint.damage(folder)
    if problem:
        raise InputError(
            f"{folder}, which has the projection of the run's features, cannot be read ({problem}):"
            " put a copy back, or set features.weight to 0"
        )
    name = "ema_auxiliary" if parent.settings["ema"]["decay"] else "auxiliary"
    checkpoint.load_network(folder, name, nn.ModuleDict({"projection": projection}))


def _warn_of_seen_images(data: Data, parent: ParentRun) -> None:
    say, count = data.accelerator.print, sum(map(len, data.val))
    main = data.accelerator.is_main_process  # it alone asks for sizes of files, and prints
    if main and data.held_out and fingerprint(data.val) != parent.facts["val_sha256"]:
        say(
            f"warning: data.val is empty, and the {count} images held out were trained on in "
            f"{parent.run}: evaluations are too good"
        )
    if set(map(str, data.config.data.val)) & set(map(str, data.config.data.labeled)):
        say("warning: data.val is trained on: evaluations are too good")
    if 0 < count < TOO_FEW_HELD_OUT:
        say(f"warning: only {count} held-out images decide what is best")
