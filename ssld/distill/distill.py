"""Label-free distillation: `accelerate launch -m ssld.distill --config F.yaml [--a.b value ...]`.

Cui et al. 2021, "Beyond Self-Supervision" (SSLD), section 3: the student P minimises a divergence
between its own and a frozen teacher Q's prediction on every image of T and U alike,

    min over P of  sum over x in T + U of  D(Q(x), P(x))  + weight decay          (equation 3)

and the labels of T are never read. `Distillation.losses` below is that sum, with a term on features
beside D or alone where one is asked for; the loop around it is `ssld/engine/loop.py`, the
divergences are `ssld/distill/divergence.py`, the feature term `ssld/distill/features.py`, the
teacher is `ssld/models/teacher.py`. The same command runs under `python -m`, `accelerate launch -m`
and `torchrun -m`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ssld.data.labels import NO_CLASSES, ClassTable, table_of
from ssld.data.loading import Batch
from ssld.distill.config import DistillConfig, FeaturesConfig, LossConfig
from ssld.distill.divergence import divergence, training_divergence
from ssld.distill.features import open_projection, training_feature_loss
from ssld.distill.many import open_members, start_members, unfinished
from ssld.distill.setup import Data, describe, open_data, open_student, start_run
from ssld.distill.stored import distill_stored
from ssld.distill.task import Classification
from ssld.distill.verify_teacher import verify_teacher
from ssld.engine.loop import train
from ssld.engine.task import Blame
from ssld.engine.together import train_together
from ssld.health.classification_metrics import ClassificationMetrics
from ssld.models.classifier import Classifier
from ssld.models.shared_teacher import SharedTeacher
from ssld.models.teacher import CURE, Teacher, describe_faults, open_teacher, require_numbers


class Distillation(Classification):
    """The student's task: predict what the teacher predicts, or have its features.

    Args:
        teacher: frozen; sees the very views that the student sees, or `batch.other_images`.
        loss: which divergence, at which temperature.
        other_view: the teacher sees another view of each image.
        features: which distance between features.
        projection: student's features [b, d] -> [b, teacher's d]; None without a feature term.
    """

    def __init__(
        self,
        teacher: Teacher,
        loss: LossConfig,
        *,
        other_view: bool = False,
        features: FeaturesConfig | None = None,
        projection: nn.Module | None = None,
    ) -> None:
        self.teacher = teacher
        self.loss = loss
        self.other_view = other_view
        self.features = features or FeaturesConfig()
        self.projection = projection
        if not loss.weight:
            self.agreement = "feature_agreement"

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        return {"teacher": self.teacher}

    @property
    def auxiliary(self) -> Mapping[str, nn.Module]:
        return {"projection": self.projection} if self.projection else {}

    def losses(self, student: Callable[..., Any], batch: Batch) -> dict[str, Tensor]:
        """One value per image, float32 [b]; `batch.labels` is not read.

        Args:
            student: uint8 [b, h, w, 3] -> logits [b, classes], or with features [b, d] beside them.
        """
        loss, terms = self.loss, {}
        seen = batch.images if batch.other_images is None else batch.other_images
        if self.projection is None:
            targets = self.teacher(seen, loss.temperature)  # log-probabilities [b, classes]
            logits = student(batch.images)  # [b, classes]
        else:
            targets, (wanted,) = self.teacher(seen, loss.temperature, with_features=True)
            logits, own = student(batch.images, with_features=True)  # and [b, student's d]
            projected = self.projection(own)  # [b, teacher's d], as `wanted`
            distance = training_feature_loss(self.features.loss, projected, wanted)
            terms["features"] = self.features.weight * distance
        if loss.weight:
            distance = training_divergence(loss.name, logits, targets, temperature=loss.temperature)
            terms["divergence"] = loss.weight * distance
        return terms

    def blame(self) -> Blame:
        """A teacher whose predictions, or features, are no numbers."""
        names, faulty = self.teacher.names, self.teacher.faulty

        def guilty(weight: Tensor, ids: list[str]) -> tuple[str, str] | None:
            problem = describe_faults(names, faulty, weight, ids)
            return (problem, CURE) if problem else None

        return guilty

    def evaluate(self, student: Classifier, batches: Iterable[Batch]) -> ClassificationMetrics:
        """What student and teacher say about held-out images, at the loss's temperature, and how
        alike their features are.

        Raises:
            InputError: the teacher's predictions for some of them are no numbers.
        """
        loss, device = self.loss, next(student.parameters()).device
        size = self.teacher.networks[0].feature_size if self.projection else 0
        measured = ClassificationMetrics(student.num_classes, device, size)
        for batch in batches:
            if self.projection is None:
                targets = self.teacher(batch.images, loss.temperature)
                require_numbers(self.teacher, batch)
                logits = student(batch.images)
            else:
                targets, (wanted,) = self.teacher(
                    batch.images, loss.temperature, with_features=True
                )
                require_numbers(self.teacher, batch)
                logits, own = student(batch.images, with_features=True)
                # The student's own one, as it may be an average, and so is its projection then.
                projected = student.get_submodule("auxiliary.projection")(own)
                measured.add_features(batch, projected, wanted)
            if loss.weight:
                logits = logits.float()
                distance = divergence(loss.name, logits, targets, temperature=loss.temperature)
                measured.add(batch, logits / loss.temperature, targets, distance)
        return measured


def distill(config: DistillConfig) -> None:
    """Check everything that can be checked, then train, export and report into `config.out`.

    Raises:
        InputError: bad settings, sources, weights or launcher; nothing was written then.
    """
    if config.labels:
        return distill_stored(config)
    if config.students:
        return _distill_many(config)
    data = open_data(config)
    student, teacher, facts = open_networks(data, config)
    _warn_of_js(data, [config.loss])
    facts |= verify_teacher(data, teacher)
    run = start_run(data, student, facts, teacher=teacher)
    train(run, distillation(config, teacher, student), student)


def _distill_many(config: DistillConfig) -> None:
    """The same for several students: each batch is read once, and the teacher answers it once."""
    students = unfinished(config)
    if not students:
        return
    data = open_data(config)
    alone = all(one.features_alone for one in students.values())
    teacher, digest = open_teacher(config.taught_by, config.precision, features_alone=alone)
    facts = {**describe(data.accelerator, named(teacher)), "teacher_sha256": digest}
    members = open_members(data, students, lambda one: _classes(one, teacher))
    _warn_of_js(data, [one.loss for one in students.values()])
    facts |= verify_teacher(data, teacher)
    runs = start_members(members, facts, teacher=teacher)
    features = any(one.features.weight for one in students.values())
    shared = SharedTeacher(teacher, kept=config.accumulate, with_features=features)
    train_together(
        [
            (run, distillation(one.config, shared, one.student), one.student)
            for run, one in zip(runs, members, strict=True)
        ]
    )


def _warn_of_js(data: Data, losses: list[LossConfig]) -> None:
    if any(loss.name == "js" and loss.weight for loss in losses):
        data.accelerator.print(
            "loss: js trains as 16 JSD; with 1000 or more classes kl starts faster "
            "(docs/divergences.md)"
        )


def _classes(config: DistillConfig, teacher: Teacher) -> ClassTable:
    """What the student has to tell apart."""
    return NO_CLASSES if config.features_alone else table_of("the teacher", teacher)


def distillation(config: DistillConfig, teacher: Teacher, student: Classifier) -> Distillation:
    """The task as the settings say it."""
    projected = config.features.weight > 0
    return Distillation(
        teacher,
        config.loss,
        other_view=config.teacher_view == "other",
        features=config.features,
        projection=open_projection(student, teacher, config.seed) if projected else None,
    )


def open_networks(
    data: Data, config: DistillConfig, *, keep_classes: bool = False
) -> tuple[Classifier, Teacher, dict[str, Any]]:
    """Student and teacher, and what run.json says of them.

    Args:
        keep_classes: see `ssld.distill.setup.open_student`.

    Raises:
        InputError: weights that are missing or do not fit, or of other classes.
    """
    alone = config.features_alone
    teacher, digest = open_teacher(config.taught_by, config.precision, features_alone=alone)
    student = open_student(
        data, config.student, _classes(config, teacher), keep_classes=keep_classes
    )
    facts = describe(data.accelerator, {"student": student, **named(teacher)})
    return student, teacher, {**facts, "teacher_sha256": digest}


def named(teacher: Teacher) -> dict[str, Classifier]:
    """The teacher's networks by the names that tables use."""
    return dict(zip(teacher.names, teacher.networks, strict=True))
