"""Distillation from stored labels: `ssld distill --labels DIR`, without a teacher in memory.

The views are those that were labeled, by the label set's seed and augmentation; which of them come
when, the initial weights and all else follow from the run's own seed. The held-out images were
labeled too, so that evaluations, verdict and the choice of the best are those of an online run. The
labels are of `ssld labels build` (`ssld/distill/build_labels.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ssld.common.errors import InputError
from ssld.data.loading import Batch, ViewBatches
from ssld.data.transforms import EvalView
from ssld.distill.config import DistillConfig, LossConfig
from ssld.distill.divergence import divergence, training_divergence
from ssld.distill.many import open_members, start_members, unfinished
from ssld.distill.setup import ClassifierRun, Data, describe, open_data, open_student, start_run
from ssld.distill.task import Classification
from ssld.distill.truncated import spread, with_tail
from ssld.engine.loop import train
from ssld.engine.task import Blame
from ssld.engine.together import train_together
from ssld.health.classification_metrics import ClassificationMetrics
from ssld.labels.batches import TaughtBatch, TaughtBatches
from ssld.labels.build import top_and_tail
from ssld.labels.label_set import LabelSet
from ssld.labels.transport import local_copy
from ssld.models.classifier import Classifier
from ssld.models.teacher import CURE, Teacher, describe_faults, open_teacher


class StoredDistillation(Classification):
    """The student's task: predict what the teacher predicted.

    Args:
        stored: what it predicted.
        loss: which divergence, over the stored classes and the rest (`ssld/distill/truncated.py`).
        teacher: is asked about fresh views, where there are any.
    """

    def __init__(self, stored: LabelSet, loss: LossConfig, teacher: Teacher | None = None) -> None:
        self.stored = stored
        self.loss = loss
        self.teacher = teacher
        self._asked: list[int] = []
        """Rows of the last batch that the teacher was asked about."""

    @property
    def frozen(self) -> Mapping[str, nn.Module]:
        return {"teacher": self.teacher} if self.teacher is not None else {}

    def train_batches(
        self, run: ClassifierRun, first_step: int, last_step: int
    ) -> Iterator[TaughtBatch]:
        """This process's batches of steps [first_step, last_step)."""
        make = self._batches("train", ViewBatches(run.sources, run.view))
        return run.train_batches(make, first_step, last_step)

    def held_out(
        self, run: ClassifierRun, view: EvalView | None = None, description: str = "evaluate"
    ) -> Iterator[TaughtBatch]:
        """This process's held-out images, each once over all processes, as they were labeled."""
        make = self._batches("val", ViewBatches(run.val, run.eval_view, run.val_labels))
        return run.eval_batches(make, description)

    def _batches(self, kind: str, views: ViewBatches) -> TaughtBatches:
        count = self.stored.manifest["views"] if kind == "train" else 1
        return TaughtBatches(views, self.stored.labels(kind), count)

    def taught(self, batch: Batch) -> TaughtBatch:
        """With even labels, for images that have none."""
        k, classes = self.stored.manifest["top_k"], self.stored.table.count
        named = torch.arange(k).expand(len(batch.ids), k)
        even = torch.zeros(len(batch.ids), k + (k < classes)).log_softmax(-1)
        return TaughtBatch(**vars(batch), classes=named, log_probs=even, fresh=[])

    def losses(self, student: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Tensor]:
        """One value per image, float32 [b].

        Args:
            student: uint8 [b, h, w, 3] -> logits [b, classes].
        """
        assert isinstance(batch, TaughtBatch)
        loss = self.loss
        self._asked = batch.fresh
        if self.teacher is not None and batch.fresh:
            batch = _answered(batch, self.teacher, loss.temperature)
        logits = with_tail(student(batch.images), batch.classes, loss.temperature)  # [b, k + 1]
        distance = training_divergence(
            loss.name, logits, batch.log_probs, temperature=loss.temperature
        )
        return {"divergence": loss.weight * distance}

    def blame(self) -> Blame | None:
        """A teacher whose predictions for fresh views are no numbers."""
        if self.teacher is None or not self._asked:
            return None
        names, faulty, rows = self.teacher.names, self.teacher.faulty, self._asked

        def guilty(weight: Tensor, ids: list[str]) -> tuple[str, str] | None:
            problem = describe_faults(names, faulty, weight[rows], [ids[i] for i in rows])
            return (problem, CURE) if problem else None

        return guilty

    def evaluate(self, student: Classifier, batches: Iterable[Batch]) -> ClassificationMetrics:
        """What the student says about held-out images, and the teacher said, at the loss's
        temperature; its entropy is that of a tail without preferences."""
        loss, device = self.loss, next(student.parameters()).device
        measured = ClassificationMetrics(self.stored.table.count, device)
        for batch in batches:
            assert isinstance(batch, TaughtBatch)
            logits = student(batch.images).float()
            distance = divergence(
                loss.name,
                with_tail(logits, batch.classes, loss.temperature),
                batch.log_probs,
                temperature=loss.temperature,
            )
            targets = spread(batch.classes, batch.log_probs, self.stored.table.count)
            measured.add(batch, logits / loss.temperature, targets, distance)
        return measured


def _answered(batch: TaughtBatch, teacher: Teacher, temperature: float) -> TaughtBatch:
    """With the teacher's word on fresh views, as if it had been stored."""
    log_probs = teacher(batch.images[batch.fresh], temperature)
    classes, values, tail = top_and_tail(log_probs, batch.classes.shape[-1])
    values = torch.cat([values, tail[:, None]], dim=-1)[:, : batch.log_probs.shape[-1]]
    rows = torch.tensor(batch.fresh, device=batch.images.device)
    return replace(
        batch,
        classes=batch.classes.index_copy(0, rows, classes),
        log_probs=batch.log_probs.index_copy(0, rows, values),
    )


def distill_stored(config: DistillConfig) -> None:
    """Check that the labels are of these views, images and teacher, then train.

    Raises:
        InputError: they are not, or anything that `ssld.distill.distill` refuses; nothing was
            written then.
    """
    if config.students:
        return _distill_many_stored(config)
    data = open_data(config)
    student, task, facts = open_stored(config, data)
    run = start_run(data, student, facts, stored=task.stored)
    train(run, task, student)


def _distill_many_stored(config: DistillConfig) -> None:
    """The same for several students: each batch and its labels are read once."""
    students = unfinished(config)
    if not students:
        return
    data = open_data(config)
    stored, _ = _open_labels(config)
    members = open_members(data, students, lambda _: stored.table)
    require_fit(data, members[0].student, stored)  # views and temperature are of all
    runs = start_members(members, _described(config, data, stored), stored=stored)
    train_together(
        [
            (run, StoredDistillation(stored, one.config.loss), one.student)
            for run, one in zip(runs, members, strict=True)
        ]
    )


def open_stored(
    config: DistillConfig, data: Data
) -> tuple[Classifier, StoredDistillation, dict[str, Any]]:
    """Student and task, and what run.json says of them.

    Raises:
        InputError: the labels are not of these views, images and teacher, or damaged.
    """
    stored, teacher = _open_labels(config)
    student = open_student(data, config.student, stored.table)
    require_fit(data, student, stored)
    facts = describe(data.accelerator, {"student": student})
    facts = {**_described(config, data, stored), **facts}
    return student, StoredDistillation(stored, config.loss, teacher), facts


def _open_labels(config: DistillConfig) -> tuple[LabelSet, Teacher | None]:
    """And the teacher of fresh views."""
    stored = LabelSet(str(local_copy(config.labels or "")))
    return stored, _asked_teacher(config, stored)


def _described(config: DistillConfig, data: Data, stored: LabelSet) -> dict[str, Any]:
    """What run.json says of the labels."""
    manifest = stored.manifest
    data.accelerator.print(
        f"teacher: stored labels of {manifest['views']} views, {manifest['top_k']} of "
        f"{manifest['classes']} classes each{_asked_about(config)}"
    )
    return {
        **manifest["described"],
        "teacher_sha256": manifest["teacher_sha256"],
        "labels_sha256": stored.sha256,
        "labels": {key: manifest[key] for key in ("views", "top_k", "seed", "teachers")},
    }


def _asked_about(config: DistillConfig) -> str:
    """What the teacher of the settings does besides, as words."""
    if config.fresh_share:
        share = f"{config.fresh_share:.1%}".replace(".0%", "%")
        return f"; it is asked about the fresh views of {share} of the samples, and no others"
    return "; it is asked about none" if config.taught_by else ""


def require_fit(data: Data, student: Classifier, stored: LabelSet) -> None:
    """
    Raises:
        InputError: the labels are of other views, other images, or damaged.
    """
    config: Any = data.config
    stored.require_one_set()
    stored.require_settings(
        config.augment,
        size=student.input_size,
        temperature=config.loss.temperature,
        teacher_view=config.teacher_view,
    )
    sources = {"train": data.trained, "val": data.val}
    stored.require_samples(data.accelerator, sources)
    stored.require_views(data.accelerator, sources, config.augment)
    stored.require_files(data.accelerator)
    note = stored.noted_versions()
    if note:
        data.accelerator.print(note)


def _asked_teacher(config: DistillConfig, stored: LabelSet) -> Teacher | None:
    """The teacher of the settings, where it is still to be asked.

    Raises:
        InputError: a teacher is named, and it is not the one whose labels these are.
    """
    if not config.taught_by:
        return None
    teacher, digest = open_teacher(config.taught_by, config.precision)
    asked = stored.manifest["teacher_sha256"]
    if digest != asked:
        raise InputError(
            f"labels {stored.folder}: they are of another teacher (sha256 {asked[:12]}, this one's "
            f"is {digest[:12]}): leave the teacher out, or build labels of this one"
        )
    for before, now in zip(
        stored.manifest["teachers"], config.resolved_teachers(teacher.networks), strict=True
    ):
        for key in ("input_size", "mean", "std", "batch_norm"):
            value = getattr(now, key)
            if (list(value) if isinstance(value, tuple) else value) != before[key]:
                raise InputError(
                    f"labels {stored.folder}: they are of this teacher with {key} {before[key]!r}, "
                    f"and here it has {value!r}: set it back, or build labels of these settings"
                )
    return teacher if config.fresh_share else None
