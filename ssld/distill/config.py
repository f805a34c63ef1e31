"""Every setting of a distillation or supervised run, as frozen dataclasses: the only truth about
settings. What all runs share is in `ssld/engine/config.py`, the settings of the commands that look at
runs and models are in `ssld/compare/config.py`.

Recipes (`configs/*.yaml`) and `--a.b value` overrides fill them (`ssld/cli/parse.py`); the resolved
values are written into each run folder as `config.yaml`. This file imports neither torch nor timm,
so that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ssld.common.settings import (
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Settings,
    ShareBelowOne,
    one_of,
    require,
)
from ssld.data.config import AugmentConfig, DataConfig
from ssld.distill.losses import LOSSES
from ssld.engine.config import CheckpointConfig, LoopConfig
from ssld.models.config import StudentConfig, TeacherConfig


@dataclass(frozen=True)
class LossConfig(Settings, section="loss"):
    """The divergence between the teacher's and the student's prediction."""

    name: Annotated[str, one_of(LOSSES)] = "kl"
    """js, symmetric_kl, kl or soft_ce (`ssld/distill/losses.py`). js is the true Jensen-Shannon
    divergence; the reference's "JS" is symmetric_kl."""
    temperature: PositiveFloat = 1.0
    """Divides both networks' logits; SSLD section 3.3.2 uses none, that is 1."""
    weight: PositiveFloat = 1.0
    """Factor on the loss."""


@dataclass(frozen=True)
class ProbeConfig(Settings, section="probe"):
    """What the student's frozen features are worth, where labels exist.

    k nearest neighbours and a linear classifier on labeled training images, tested on labeled
    held-out ones.
    """

    every_epochs: NonNegativeFloat = 10.0
    """Epochs between probes, from the first evaluation on that is due; 0 makes none."""
    images: PositiveInt = 5000
    """Labeled images to learn from, and as many at most to test on."""
    neighbours: PositiveInt = 20
    """k (DINO, Caron et al. 2021, appendix E)."""


@dataclass(frozen=True)
class ClassifierCheckpointConfig(CheckpointConfig):
    """When training state is saved, and which is the best.

    It is with the first line of metrics.jsonl (`log_every_steps`) at which one of these is due, at
    the end, and on SIGTERM or SIGINT.
    """

    best: Literal["agreement1", "agreement5", "divergence", "top1", "last"] = "agreement1"
    """The metric on held-out images by which the checkpoint is chosen that `student/` holds, of
    those without symptoms (collapsed, at chance) while there is one. agreement1 counts beyond
    chance (Cohen's kappa); supervised training takes top1 for it. last: whatever came last."""


@dataclass(frozen=True)
class RunConfig(LoopConfig):
    """What the training commands of classifiers share."""

    student: StudentConfig = field(default_factory=StudentConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    checkpoint: ClassifierCheckpointConfig = field(default_factory=ClassifierCheckpointConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.student.arch or self.student.checkpoint),
            "student.arch is missing: name a timm architecture, for example resnet50d",
        )
        require(
            bool(self.data.labeled or self.data.unlabeled),
            "data.labeled and data.unlabeled are both empty: name at least one source of images",
        )


@dataclass(frozen=True)
class DistillConfig(RunConfig):
    """`python -m ssld.distill`: train a student to predict what a frozen teacher predicts."""

    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    teachers: list[TeacherConfig] = field(default_factory=list)
    """Several teachers, averaged in probability space, instead of `teacher`."""
    teacher_view: Literal["same", "other"] = "same"
    """same: the teacher sees the student's very view. other: another one of the same image."""
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_teacher()

    def _check_teacher(self) -> None:
        single = bool(self.teacher.arch or self.teacher.checkpoint)
        require(
            single != bool(self.teachers),
            "give teacher.arch or teacher.checkpoint for one teacher, or `teachers` for several, "
            "and not both",
        )


@dataclass(frozen=True)
class SupervisedConfig(RunConfig):
    """`python -m ssld.supervised`: train with human labels, for teachers and honest baselines."""

    label_smoothing: ShareBelowOne = 0.0
    """Share of the target spread evenly over all classes."""
    mixup: NonNegativeFloat = 0.0
    """alpha of mixup; 0 is off."""
    cutmix: NonNegativeFloat = 0.0
    """alpha of cutmix; 0 is off. With mixup also on, each batch draws one of the two."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(self.data.labeled) and not self.data.unlabeled,
            "supervised training reads data.labeled only: give it, and leave data.unlabeled empty",
        )
