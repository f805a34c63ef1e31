"""Everything between a configuration and the first step: checked before anything is written."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ssld.common.errors import InputError
from ssld.data.eval_view import eval_view
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
from ssld.data.sampling import Sampler
from ssld.data.source import Source
from ssld.data.sources import open_source
from ssld.data.subset import hold_out, share_of
from ssld.data.transforms import EvalView, TrainView
from ssld.distill.config import DistillConfig, RunConfig
from ssld.distill.stage_config import FinetuneConfig
from ssld.engine.optimizer import build_optimizer
from ssld.engine.processes import check_launcher, open_accelerator
from ssld.engine.start import Run, require_divisible, start
from ssld.models.classifier import Classifier, open_network
from ssld.models.teacher import Teacher


@dataclasses.dataclass
class ClassifierRun(Run):
    """A run that trains a classifier."""

    config: RunConfig
    sources: list[Source]
    val: list[Source]
    view: View
    eval_view: EvalView
    train_labels: LabelIndex | None
    val_labels: LabelIndex | None
    labeled: list[Source]
    """Training images whose labels may be read for a probe, not for training."""

    @property
    def best_by(self) -> str:
        """The metric that decides which checkpoint is the best, or last."""
        best = self.config.checkpoint.best
        by_agreement = best in ("agreement1", "agreement5", "divergence")
        return "top1" if self.teacher is None and by_agreement else best


class Setup:
    """Opens sources and networks for one training command.

    Raises:
        InputError: a launcher that disagrees, a batch that does not divide, a bad source.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        check_launcher(config)
        self.labeled = _open("data.labeled", config.data.labeled)
        self.unlabeled = _open("data.unlabeled", config.data.unlabeled)
        self.val = _open("data.val", config.data.val)
        self.accelerator = open_accelerator(config)
        self.device = self.accelerator.device
        self.world, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        require_divisible(config, self.accelerator)
        self._hold_out()
        self.unlabeled = share_of(self.unlabeled, config.data.unlabeled_share)
        # A second stage has unlabeled sources only for what it holds out of them.
        trained = [] if isinstance(config, FinetuneConfig) else self.unlabeled
        self.sources = [*self.labeled, *trained]
        fractions = (config.data.fractions or [])[: len(self.sources)]
        self.order = Sampler(
            [len(s) for s in self.sources], fractions if sum(fractions) else None, config.seed
        )
        self.facts: dict[str, Any] = {"flops_per_image": 0.0}

    def _hold_out(self) -> None:
        """Without `data.val`, set training images aside: unlabeled ones where there are any."""
        self.held_out = not self.val and self.config.data.holdout > 0
        if not self.held_out:
            return
        wanted = self.config.data.holdout
        if self.unlabeled:
            self.unlabeled, self.val = hold_out(self.unlabeled, wanted)
        else:
            self.labeled, self.val = hold_out(self.labeled, wanted)
        count = sum(map(len, self.val))
        self.accelerator.print(
            f"held out: {count:,} training images for evaluation (data.holdout), as data.val is "
            "empty"
            if count
            else "held out: nothing, data.val is empty and the sources are too small to hold out a "
            "twentieth: no verdict"
        )

    def open_student(self, num_classes: int | None, label_names: list[str] | None) -> Classifier:
        """Build the student from the run's seed.

        Args:
            num_classes: the teacher's; None takes the labeled sources' class folders.
            label_names: the teacher's; None takes the labeled sources'.

        Raises:
            InputError: class counts that differ, an unlabeled source of class folders.
        """
        student, names = self.config.student, class_names(self.labeled)
        if num_classes is None:
            names = kept_order(names, self.config.out, self.config.resume)
        wanted = num_classes or student.num_classes or (len(names) if names else None)
        if wanted is None:
            raise InputError("student.num_classes is missing: data.labeled does not name classes")
        if student.num_classes not in (None, wanted):
            raise InputError(
                f"student.num_classes is {student.num_classes} but the teacher has {wanted} "
                "classes: leave student.num_classes out or take another teacher"
            )
        if num_classes is None and names and len(names) > wanted:
            raise InputError(
                f"student.num_classes is {wanted} but data.labeled names {len(names)} classes"
            )
        self._refuse_class_folders(set(names or ()) | set(label_names or ()))
        torch.manual_seed(self.config.seed)
        network = open_network(
            "student",
            arch=student.arch,
            args=student.args,
            pretrained=student.pretrained,
            checkpoint=student.checkpoint,
            num_classes=wanted,
            input_size=self.config.augment.size,
        )
        build_optimizer(network, self.config.optimizer)  # refuse it before anything is written
        self._require_same_classes(network, wanted, label_names)
        own_order = num_classes is None and network.label_names  # of a classifier that is kept
        if num_classes is not None and class_names_for(self.labeled, label_names) is None:
            names = None  # the teacher's classes have numbers alone, and so have the folders
        if not own_order and (label_names or (names and len(names) == wanted)):
            network.label_names = label_names or names
        self.config = dataclasses.replace(
            self.config,
            student=dataclasses.replace(student, num_classes=wanted),
            augment=dataclasses.replace(self.config.augment, size=network.input_size),
        )
        return network

    def _require_same_classes(
        self, student: Classifier, count: int, teachers: list[str] | None
    ) -> None:
        """Of a student that keeps its classifier. A first stage learns the teacher's classes anew,
        one that goes on does not unlearn others."""
        teacher = ClassTable("the teacher", count, teachers)
        problem = differ(table_of("the student", student), teacher)
        if problem and isinstance(self.config, FinetuneConfig):
            raise InputError(
                f"{problem}: take the teacher of the run that this stage goes on from, or one of "
                f"the same classes; {TRANSFER}"
            )
        if problem:
            self.accelerator.print(f"student: {problem}; its classifier will learn the teacher's")

    def _refuse_class_folders(self, names: set[str]) -> None:
        for source in self.unlabeled:
            found = sorted(names & set(source.class_names or ()))
            if found:
                raise InputError(
                    f"data.unlabeled {source.path} has the class folder {found[0]!r}: list the "
                    "source under data.labeled (distillation does not read its labels), or point "
                    "at the images without class folders"
                )

    def describe(self, networks: dict[str, Classifier]) -> None:
        """Print parameters, multiply-adds and input size of each network, and keep them."""
        for role, network in networks.items():
            parameters, macs = network.cost()
            fact = {
                "architecture": network.model.pretrained_cfg.get("architecture"),  # type: ignore[union-attr]
                "parameters_m": round(parameters, 3),
                "macs_m": round(macs, 2),
                "input_size": network.input_size,
                "mean": network.mean,
                "std": network.std,
            }
            self.facts[role] = fact
            # A student's backward pass costs twice its forward pass (Kaplan et al. 2020, 2.1).
            self.facts["flops_per_image"] += 2e6 * macs * (3 if role == "student" else 1)
            self.accelerator.print(
                f"{role}: {fact['architecture']}, {parameters:.2f} M parameters, {macs:.0f} M "
                f"multiply-adds at {network.input_size} px, mean {network.mean}, std {network.std}"
            )

    def start(
        self,
        student: Classifier,
        *,
        teacher: Teacher | None = None,
        teacher_sha256: str | None = None,
        view: View | None = None,
    ) -> ClassifierRun:
        """Create the run folder, the first thing that is written.

        Args:
            view: how training images are made, by default as `augment` says.
        """
        config = self.config
        if isinstance(config, DistillConfig) and teacher is not None:
            config = _resolved(config, teacher)
        own_labels = teacher is None
        train_labels = index_for(self.labeled, student, "student") if own_labels else None
        val_labels = None
        if self.val and own_labels:
            val_labels = index_for(self.val, student, "student")
        elif self.val:
            val_labels = known_index(self.val, student)
        if own_labels:
            require_labels("data.labeled", self.labeled)
        if config.checkpoint.best == "top1" and not any_known(self.val, val_labels):
            raise InputError(
                "checkpoint.best is top1 but no held-out image has a label that the student knows: "
                "give a labeled data.val, or another checkpoint.best"
            )
        self.facts |= {
            "teacher_sha256": teacher_sha256,
            "held_out": {s.path: len(s) for s in self.val} if self.held_out else None,
        }
        run = start(
            config, self.accelerator, self.sources, self.val, self.order, self.facts,
            teacher=teacher,
        )  # fmt: skip
        return ClassifierRun(
            **vars(run),
            view=view or TrainView(config.augment, student.input_size, config.seed),
            eval_view=eval_view(student),
            train_labels=train_labels,
            val_labels=val_labels,
            labeled=self.labeled,
        )


def _open(setting: str, paths: str | list[str]) -> list[Source]:
    sources = []
    for path in [paths] if isinstance(paths, str) else paths:
        try:
            sources.append(open_source(path))
        except InputError as error:
            raise InputError(f"{setting}: {error}") from error
    return sources


def _resolved(config: DistillConfig, teacher: Teacher) -> DistillConfig:
    """Write what the weights' metadata decided into the settings."""
    networks = list(teacher.networks)
    resolved = [
        dataclasses.replace(
            c,
            input_size=n.input_size,
            mean=(n.mean[0], n.mean[1], n.mean[2]),
            std=(n.std[0], n.std[1], n.std[2]),
        )
        for c, n in zip(teacher.configs, networks, strict=True)
    ]
    if config.teachers:
        return dataclasses.replace(config, teachers=resolved)
    return dataclasses.replace(config, teacher=resolved[0])
