"""Every setting of the runs that train a classifier, as frozen dataclasses: the only truth about
settings. What all runs share is in `ssld/engine/config.py`.

Recipes (`configs/`) and `--a.b value` overrides fill them (`ssld/cli/parse.py`); the resolved
values are written into each run folder as `config.yaml`. This file imports neither torch nor timm,
so that `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Protocol, Self

from ssld.common.settings import (
    IN_SHORT_HELP,
    REFUSED,
    Limits,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Precision,
    Settings,
    Share,
    ShareBelowOne,
    one_of,
    require,
)
from ssld.data.config import AugmentConfig, DataConfig
from ssld.distill.losses import LOSSES
from ssld.engine.config import CheckpointConfig, LoopConfig
from ssld.models.config import StudentConfig, TeacherConfig

StoredClasses = Annotated[int, Limits(lambda x: x >= 5, "5 or more, evaluations compare five")]
"""Classes of a view that are stored."""


@dataclass(frozen=True)
class LossConfig(Settings, section="loss"):
    """The divergence between the teacher's and the student's prediction."""

    name: Annotated[str, one_of(LOSSES)] = "kl"
    """js, symmetric_kl, kl or soft_ce (`ssld/distill/losses.py`). js is the true Jensen-Shannon
    divergence; the reference's "JS" is symmetric_kl."""
    temperature: PositiveFloat = 1.0
    """Divides both networks' logits; SSLD section 3.3.2 uses none, that is 1."""
    weight: NonNegativeFloat = 1.0
    """Factor on the loss; 0 leaves it out, for `features` alone."""


@dataclass(frozen=True)
class FeaturesConfig(Settings, section="features"):
    """A second term: what a linear layer makes of the student's pooled features, [b, d], against
    the teacher's. The layer is trained with the student and not exported.

    With `loss.weight` 0 the term is alone: the student then has no classifier, and the teacher
    needs none, as DINO's networks (`ssld/distill/features.py`).
    """

    weight: NonNegativeFloat = 0.0
    """Factor on the term; 0 leaves it out. At 1 an untrained student gets about KL's gradient."""
    loss: Literal["cosine", "l2"] = "cosine"
    """cosine: 1 - cos, from 0 to 2. l2: mean square of the difference (FitNets, 1412.6550), which
    has the scale of the teacher's features."""


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
    chance (Cohen's kappa); supervised training takes top1 for it, `features` alone take
    feature_agreement. last: whatever came last."""


class Preprocessing(Protocol):
    """What is read of a network; see `ssld.models.classifier.Network`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: int

    @property
    def num_classes(self) -> int: ...


@dataclass(frozen=True)
class ClassifierConfig(LoopConfig):
    """What all commands share that train a classifier."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    checkpoint: ClassifierCheckpointConfig = field(default_factory=ClassifierCheckpointConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)

    @property
    def taught_by(self) -> list[TeacherConfig]:
        """The teachers whose predictions are the targets; none where labels are."""
        return []

    def resolved(self, student: Preprocessing, teachers: Sequence[Preprocessing]) -> Self:
        """With what the weights' own metadata decided."""
        return replace(self, augment=replace(self.augment, size=student.input_size))


@dataclass(frozen=True)
class LabelConfig(ClassifierConfig):
    """What they share that train with human labels."""

    label_smoothing: ShareBelowOne = 0.0
    """Share of the target spread evenly over all classes."""
    mixup: NonNegativeFloat = 0.0
    """alpha of mixup; 0 is off."""
    cutmix: NonNegativeFloat = 0.0
    """alpha of cutmix; 0 is off. With mixup also on, each batch draws one of the two."""


def _require_student(student: StudentConfig) -> None:
    require(
        bool(student.arch or student.checkpoint),
        "student.arch is missing: name a timm architecture, for example resnet50d",
    )


def _require_images(data: DataConfig) -> None:
    require(
        bool(data.labeled or data.unlabeled),
        "data.labeled and data.unlabeled are both empty: name at least one source of images",
    )


@dataclass(frozen=True)
class DistillConfig(ClassifierConfig):
    """`python -m ssld.distill`: train a student to predict what a frozen teacher predicts."""

    student: StudentConfig = field(default_factory=StudentConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    teachers: list[TeacherConfig] = field(default_factory=list)
    """Several teachers, averaged in probability space, instead of `teacher`."""
    teacher_view: Literal["same", "other"] = "same"
    """same: the teacher sees the student's very view. other: another one of the same image."""
    loss: LossConfig = field(default_factory=LossConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    labels: str | None = None
    """Folder of `ssld labels build`, or where one was pushed to on a hub: what the teacher said of
    views is read instead of asked for. A teacher that is given besides must be the one that was
    asked."""
    fresh_share: Share = 0.0
    """With `labels` and a teacher: share of samples whose views are not stored, and which the
    teacher is asked about."""
    students: list[dict[str, Any]] = field(default_factory=list)
    """Several students of one pass of the teacher, each with its run folder OUT/NAME: a list of
    `name` and what is its own of student, optimizer, schedule, ema, loss (but for its temperature),
    features and checkpoint. What is set outside of the list is of all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.students:  # else theirs are looked at, one by one
            _require_student(self.student)
        _require_images(self.data)
        require(
            not (self.students and self.fresh_share),
            f"fresh_share is {self.fresh_share}: each of the `students` would ask the teacher for "
            "itself; leave one of the two out",
        )
        self._check_teacher()

    def _refuse_students(self, instead: str) -> None:
        require(
            not self.students,
            f"students: only `ssld distill` trains several at once; {instead}",
        )

    @property
    def taught_by(self) -> list[TeacherConfig]:
        named = bool(self.teacher.arch or self.teacher.checkpoint)
        return self.teachers or ([self.teacher] if named else [])

    @property
    def features_alone(self) -> bool:
        """Whether the teacher's predictions are no targets, and the student makes none."""
        return bool(self.taught_by) and not self.loss.weight

    def resolved(self, student: Preprocessing, teachers: Sequence[Preprocessing]) -> Self:
        config = super().resolved(student, teachers)
        own = replace(self.student, num_classes=student.num_classes or None)
        seen = self.resolved_teachers(teachers) if teachers else []
        if self.teachers:
            return replace(config, student=own, teachers=seen or self.teachers)
        return replace(config, student=own, teacher=seen[0] if seen else self.teacher)

    def resolved_teachers(self, teachers: Sequence[Preprocessing]) -> list[TeacherConfig]:
        """`taught_by` with what the weights' own metadata decided."""
        return [
            _as_seen(one, network, self.precision)
            for one, network in zip(self.taught_by, teachers, strict=True)
        ]

    def _check_teacher(self) -> None:
        require(
            not self.fresh_share or (bool(self.labels) and bool(self.taught_by)),
            f"fresh_share is {self.fresh_share}: it needs `labels`, and the teacher to ask",
        )
        require(
            not self.fresh_share or self.teacher_view == "same",
            "fresh_share: the teacher sees the student's own view then; leave teacher_view out",
        )
        single = bool(self.teacher.arch or self.teacher.checkpoint)
        require(
            single != bool(self.teachers) or (bool(self.labels) and not single),
            "give teacher.arch or teacher.checkpoint for one teacher, or `teachers` for several, "
            "and not both",
        )
        require(
            self.loss.weight > 0 or self.features.weight > 0,
            "loss.weight and features.weight are both 0: nothing is left to learn; set one of them",
        )
        require(
            not (self.features.weight and self.labels),
            f"features.weight is {self.features.weight:g}, but labels hold no features: leave one "
            "of the two out",
        )
        require(
            not self.features.weight or len(self.taught_by) == 1,
            f"features.weight is {self.features.weight:g} with {len(self.taught_by)} teachers, "
            "whose features have no common average: take one teacher, or set it to 0",
        )
        require(
            self.student.num_classes is None or not self.features_alone,
            f"student.num_classes is {self.student.num_classes} but loss.weight is 0, which trains "
            "no classifier: leave student.num_classes out, or raise loss.weight",
        )


def _as_seen(teacher: TeacherConfig, network: Preprocessing, precision: Precision) -> TeacherConfig:
    (r, g, b), (dr, dg, db) = network.mean, network.std
    return replace(
        teacher,
        input_size=network.input_size,
        mean=(r, g, b),
        std=(dr, dg, db),
        dtype=teacher.dtype or precision,
    )


@dataclass(frozen=True)
class BuildLabelsConfig(DistillConfig):
    """`ssld labels build`: what the teacher says of views 0 to `views` - 1 of every image of a
    distillation, and of its held-out images, stored in `out`.

    Takes the settings of that distillation; its student is asked for nothing but its size. The same
    command goes on where it was stopped.
    """

    views: PositiveInt = field(default=16, metadata=IN_SHORT_HELP)
    """Views of each image; a run of more epochs sees them again."""
    top_k: StoredClasses = field(default=10, metadata=IN_SHORT_HELP)
    """Classes of a view that are stored, the likeliest; 5 or more, as evaluations compare the first
    five of teacher and student (agreement@5). As many as there are stores all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not self.labels,
            "labels is given, which are read: name the folder to write to as `out`, and the "
            "teacher to ask",
        )
        require(
            not (self.resume or self.overwrite),
            "resume and overwrite are of training runs: this command goes on by itself, and labels "
            "are only replaced by removing their folder",
        )
        require(
            not self.features.weight,
            f"features.weight is {self.features.weight:g}, but labels hold no features: leave it "
            "out",
        )
        require(
            all(teacher.batch_norm == "eval" for teacher in self.taught_by),
            "teacher.batch_norm is batch: what it says of a view depends on what else is in the "
            "batch, and cannot be stored; leave it out",
        )
        self._refuse_students("labels are of no student, give `student` for its size")


@dataclass(frozen=True)
class SupervisedConfig(LabelConfig):
    """`python -m ssld.supervised`: train with human labels, for teachers and honest baselines."""

    data: DataConfig = field(
        default_factory=DataConfig, metadata={REFUSED: ("unlabeled", "unlabeled_share")}
    )
    student: StudentConfig = field(default_factory=StudentConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_student(self.student)
        _require_images(self.data)
        require(
            bool(self.data.labeled) and not self.data.unlabeled,
            "supervised training reads data.labeled only: give it, and leave data.unlabeled empty",
        )

    def resolved(self, student: Preprocessing, teachers: Sequence[Preprocessing]) -> Self:
        own = replace(self.student, num_classes=student.num_classes)
        return replace(super().resolved(student, teachers), student=own)


@dataclass(frozen=True)
class FinetuneConfig(DistillConfig):
    """`python -m ssld.finetune`: the second stage, on the labeled set only (SSLD section 4.2).

    Every setting that is not given is as in `run`, but for a hundredth of its learning rate, 30
    epochs, its student as the start, and its labeled sources only.
    """

    run: str = field(default="", metadata=IN_SHORT_HELP)
    """Finished run folder to go on from."""
    targets: Literal["teacher", "human"] = field(default="teacher", metadata=IN_SHORT_HELP)
    """teacher: its predictions, as the reference implementation; human: the labels, as the paper
    words it. By default as in `run`: the teacher after a distillation."""

    def __post_init__(self) -> None:
        require(bool(self.run), "run is missing: name the run folder to go on from")
        require(
            not self.labels, "labels: only `ssld distill` trains from stored ones; leave it out"
        )
        self._refuse_students("this stage goes on from one run, name it as `run`")
        require(
            bool(self.data.labeled),
            "data.labeled is empty: this stage trains on the labeled set only; name its sources",
        )
        super().__post_init__()
        require(
            not (self.data.unlabeled and (self.data.val or not self.data.holdout)),
            "data.unlabeled is given but this stage trains on data.labeled only: leave it out",
        )

    def _check_teacher(self) -> None:
        if self.targets == "teacher":
            super()._check_teacher()

    @property
    def taught_by(self) -> list[TeacherConfig]:
        return super().taught_by if self.targets == "teacher" else []


@dataclass(frozen=True)
class FixResConfig(FinetuneConfig):
    """`python -m ssld.fix`: the resolution fix (Touvron et al. 2019, "Fixing the train-test
    resolution discrepancy"): train the classifier at a larger size, on images as they are tested.

    Every setting that is not given is as in `run`, but for 11 epochs at a learning rate of 0.0005
    per 256 (the authors' FixResNet-50 CutMix: 0.001 at batch 512), its student as the start, its
    labeled sources only, and views of 10/7 of its size (224 to 320 px) made as for an evaluation.
    """

    train: Literal["classifier", "classifier_and_norm"] = field(
        default="classifier", metadata=IN_SHORT_HELP
    )
    """What is trained; the norm is the last one before the classifier, its statistics included."""
    resolutions: list[PositiveInt] = field(default_factory=list)
    """Sides in px at which the student is evaluated before and after, besides those that it was
    trained and is fixed at. One half of the held-out images chooses which is exported, the other
    half reports. By default seven from a bit below the size that it was trained at."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.augment == AugmentConfig(size=self.augment.size),
            "augment: this stage makes its views as an evaluation does; give augment.size only",
        )
        require(self.teacher_view == "same", "teacher_view: this stage has one view of an image")
        require(
            not self.features.weight,
            "features.weight: this stage trains the classifier, not the features; leave it out",
        )
