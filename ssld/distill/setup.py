"""From settings to a run: sources and student opened, described and checked before anything is
written.

A command calls `open_data`, `open_student`, `describe` and `start_run`, in this order; what each
returns is not changed by the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator

from ssld.common.errors import InputError
from ssld.data.labels import (
    TRANSFER,
    ClassTable,
    LabelIndex,
    any_known,
    class_names,
    class_names_for,
    differ,
    index_for,
    kept_order,
    known_index,
    require_labels,
    table_of,
)
from ssld.data.loading import View
from ssld.data.sampling import Order, Sampler
from ssld.data.source import Source, hold_out, share_of
from ssld.data.sources import open_source
from ssld.data.transforms import EvalView, TrainView, eval_view
from ssld.distill.config import ClassifierConfig
from ssld.engine.optimizer import build_optimizer
from ssld.engine.processes import check_launcher, open_accelerator
from ssld.engine.start import Run, require_divisible, start
from ssld.labels.batches import Cycle
from ssld.labels.label_set import LabelSet
from ssld.models.classifier import Classifier
from ssld.models.config import StudentConfig
from ssld.models.opening import open_network
from ssld.models.teacher import Teacher


@dataclass(frozen=True)
class Data:
    """The images of a run, and the processes that share them."""

    config: ClassifierConfig
    accelerator: Accelerator
    labeled: list[Source]
    unlabeled: list[Source]
    val: list[Source]
    held_out: bool
    """`val` was set aside from the training images."""
    trained: list[Source]
    """What is trained on: `labeled`, and `unlabeled` where the stage says so."""


@dataclass(frozen=True)
class ClassifierRun(Run):
    """A run that trains a classifier."""

    config: ClassifierConfig
    sources: list[Source]
    val: list[Source]
    teacher: Teacher | None
    taught: bool
    """Targets are a teacher's predictions, stored ones perhaps, and not labels."""
    view: View
    eval_view: EvalView
    train_labels: LabelIndex | None
    val_labels: LabelIndex | None
    labeled: list[Source]
    """Training images whose labels may be read for a probe, not for training."""


def open_data(config: ClassifierConfig, *, train_unlabeled: bool = True) -> Data:
    """Open the sources, and set held-out images aside where `data.val` names none.

    Args:
        train_unlabeled: unlabeled images are trained on, and do not only serve as held-out ones.

    Raises:
        InputError: a launcher that disagrees, a batch that does not divide, a bad source.
    """
    check_launcher(config)
    data = config.data
    labeled = _open("data.labeled", data.labeled)
    unlabeled = _open("data.unlabeled", data.unlabeled)
    val = _open("data.val", data.val)
    accelerator = open_accelerator(config)
    require_divisible(config, accelerator)
    held_out = not val and data.holdout > 0
    if held_out and unlabeled:
        unlabeled, val = hold_out(unlabeled, data.holdout)
    elif held_out:
        labeled, val = hold_out(labeled, data.holdout)
    if held_out:
        accelerator.print(_held_out(sum(map(len, val))))
    unlabeled = share_of(unlabeled, data.unlabeled_share)
    trained = [*labeled, *unlabeled] if train_unlabeled else labeled
    return Data(config, accelerator, labeled, unlabeled, val, held_out, trained)


def _held_out(count: int) -> str:
    if count:
        why = "(data.holdout), as data.val is empty"
        return f"held out: {count:,} training images for evaluation {why}"
    why = "data.val is empty and the sources are too small to hold out a twentieth"
    return f"held out: nothing, {why}: no verdict"


def open_student(
    data: Data,
    settings: StudentConfig,
    teacher: ClassTable | None = None,
    *,
    keep_classes: bool = False,
) -> Classifier:
    """Build the student from the run's seed.

    Args:
        teacher: its classes are the student's; by default those of the labeled sources are.
        keep_classes: a stage that goes on from a run must not unlearn its classes, where a first
            one learns the teacher's anew.

    Raises:
        InputError: class counts that differ, an unlabeled source of class folders.
    """
    config, names = data.config, class_names(data.labeled)
    if teacher is None:
        names = kept_order(names, config.out, config.resume)
    count = _class_count(settings, names, teacher)
    labels = teacher.names if teacher else None
    _refuse_class_folders(data.unlabeled, {*(names or ()), *(labels or ())})
    torch.manual_seed(config.seed)
    network = open_network(
        "student",
        arch=settings.arch,
        args=settings.args,
        pretrained=settings.pretrained,
        checkpoint=settings.checkpoint,
        num_classes=count,
        input_size=config.augment.size,
    )
    build_optimizer(network, config.optimizer)  # refuse it before anything is written
    problem = differ(table_of("the student", network), teacher) if teacher else None
    if problem and keep_classes:
        raise InputError(
            f"{problem}: take the teacher of the run that this stage goes on from, or one of the "
            f"same classes; {TRANSFER}"
        )
    if problem:
        data.accelerator.print(f"student: {problem}; its classifier will learn the teacher's")
    if teacher is None and network.label_names:
        return network  # the order of a classifier that is kept
    if teacher is not None and class_names_for(data.labeled, labels) is None:
        names = None  # the teacher's classes have numbers alone, and so have the folders
    if labels or (names and len(names) == count):
        network.label_names = list(labels or names or ())
    return network


def _class_count(
    settings: StudentConfig, names: list[str] | None, teacher: ClassTable | None
) -> int:
    given = settings.num_classes
    count = teacher.count if teacher else given or (len(names) if names else None)
    if count is None:
        raise InputError("student.num_classes is missing: data.labeled does not name classes")
    if given not in (None, count):
        raise InputError(
            f"student.num_classes is {given} but the teacher has {count} classes: leave "
            "student.num_classes out or take another teacher"
        )
    if teacher is None and names and len(names) > count:
        raise InputError(
            f"student.num_classes is {count} but data.labeled names {len(names)} classes"
        )
    return count


def _refuse_class_folders(unlabeled: list[Source], names: set[str]) -> None:
    for source in unlabeled:
        common = sorted(names & set(source.class_names or ()))
        if common:
            raise InputError(
                f"data.unlabeled {source.path} has the class folder {common[0]!r}: list the "
                "source under data.labeled (distillation does not read its labels), or point "
                "at the images without class folders"
            )


def describe(accelerator: Accelerator, networks: Mapping[str, Classifier]) -> dict[str, Any]:
    """Print a line for each network; returns what run.json says of them, by their names, and
    `flops_per_image` of a training step.

    Args:
        networks: the one named `student` is trained.
    """
    facts: dict[str, Any] = {"flops_per_image": 0.0}
    for role, network in networks.items():
        parameters, macs = network.cost()
        architecture = network.architecture
        facts[role] = {
            "architecture": architecture,
            "parameters_m": round(parameters, 3),
            "macs_m": round(macs, 2),
            "input_size": network.input_size,
            "mean": network.mean,
            "std": network.std,
        }
        # A student's backward pass costs twice its forward pass (Kaplan et al. 2020, 2.1).
        facts["flops_per_image"] += 2e6 * macs * (3 if role == "student" else 1)
        accelerator.print(
            f"{role}: {architecture}, {parameters:.2f} M parameters, {macs:.0f} M "
            f"multiply-adds at {network.input_size} px, mean {network.mean}, std {network.std}"
        )
    return facts


def start_run(
    data: Data,
    student: Classifier,
    facts: dict[str, Any],
    *,
    teacher: Teacher | None = None,
    stored: LabelSet | None = None,
    view: View | None = None,
    name: str = "",
) -> ClassifierRun:
    """Create the run folder, the first thing that is written.

    Args:
        facts: of `describe`, and what else run.json is to say.
        teacher: whose predictions are the targets; labels are where there is none.
        stored: the predictions, where they are read and not asked for.
        view: how training images are made, by default as `augment` says.
        name: of one of several runs, for what it prints.

    Raises:
        InputError: labels that are missing or not the student's; see `ssld.engine.start.start`.
    """
    config = data.config.resolved(student, teacher.networks if teacher else ())
    train_labels = val_labels = None
    taught = teacher is not None or stored is not None
    if not taught:
        train_labels = index_for(data.labeled, student, "student")
        require_labels("data.labeled", data.labeled)
    if data.val and not taught:
        val_labels = index_for(data.val, student, "student")
    elif data.val:
        val_labels = known_index(data.val, student)
    if config.checkpoint.best == "top1" and not any_known(data.val, val_labels):
        raise InputError(
            "checkpoint.best is top1 but no held-out image has a label that the student knows: "
            "give a labeled data.val, or another checkpoint.best"
        )
    fractions = (config.data.fractions or [])[: len(data.trained)]
    sizes = [len(source) for source in data.trained]
    order: Order = Sampler(sizes, fractions if sum(fractions) else None, config.seed)
    if stored is not None:
        fresh = getattr(config, "fresh_share", 0.0)
        order = Cycle(order, stored.manifest["views"], config.seed, fresh)
    run = start(
        config,
        data.accelerator,
        data.trained,
        data.val,
        order,
        {
            "teacher_sha256": None,
            "held_out": {s.path: len(s) for s in data.val} if data.held_out else None,
            **facts,
        },
        precisions=[c.dtype for c in teacher.configs if c.dtype] if teacher else [],
        name=name,
    )
    if view is None and stored is not None:
        view = stored.view(config.augment)
    return ClassifierRun(
        **vars(run),
        teacher=teacher,
        taught=taught,
        view=view or TrainView(config.augment, student.input_size, config.seed),
        eval_view=stored.eval_view if stored else eval_view(student),
        train_labels=train_labels,
        val_labels=val_labels,
        labeled=data.labeled,
    )


def _open(setting: str, paths: str | list[str]) -> list[Source]:
    sources = []
    for path in [paths] if isinstance(paths, str) else paths:
        try:
            sources.append(open_source(path))
        except InputError as error:
            raise InputError(f"{setting}: {error}") from error
    return sources
