"""The same engine with human labels: `-m ssld.supervised`, for teachers and honest baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Self

from torch import Tensor
from torch.nn.functional import cross_entropy
from torchvision.transforms import v2

from ssld.data.loading import Batch
from ssld.distill.config import LabelConfig, SupervisedConfig
from ssld.distill.setup import describe, open_data, open_student, start_run
from ssld.distill.task import Classification
from ssld.engine.loop import train
from ssld.health.classification_metrics import ClassificationMetrics
from ssld.models.classifier import Classifier


class Supervision(Classification):
    """The student's task: predict the human label; cross-entropy, with label smoothing
    (Szegedy et al. 2016, section 7), mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019)."""

    agreement = "top1"

    def __init__(
        self,
        num_classes: int,
        *,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
    ) -> None:
        self.label_smoothing = label_smoothing
        mixes = [
            transform(alpha=alpha, num_classes=num_classes)
            for transform, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix))
            if alpha > 0
        ]
        self.mix = v2.RandomChoice(mixes) if mixes else None

    @classmethod
    def of(cls, config: LabelConfig, num_classes: int) -> Self:
        """The task as the settings say it."""
        return cls(
            num_classes,
            label_smoothing=config.label_smoothing,
            mixup=config.mixup,
            cutmix=config.cutmix,
        )

    def losses(self, student: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Tensor]:
        """One value per image, float32 [b]."""
        images, targets = batch.images, batch.labels
        if self.mix is not None:
            mixed, targets = self.mix(images.permute(0, 3, 1, 2).float(), targets)
            images = mixed.permute(0, 2, 3, 1)  # [b, h, w, 3] again
        logits = student(images).float()  # [b, classes]
        loss = cross_entropy(
            logits, targets, reduction="none", label_smoothing=self.label_smoothing
        )
        return {"cross_entropy": loss}

    def evaluate(self, student: Classifier, batches: Iterable[Batch]) -> ClassificationMetrics:
        """What the student says about held-out images."""
        measured = ClassificationMetrics(student.num_classes, next(student.parameters()).device)
        for batch in batches:
            measured.add(batch, student(batch.images).float())
        return measured


def supervised(config: SupervisedConfig) -> None:
    """Train with labels, then export and report into `config.out`.

    Raises:
        InputError: bad settings, sources or launcher; nothing was written then.
    """
    data = open_data(config)
    student = open_student(data, config.student)
    facts = describe(data.accelerator, {"student": student})
    run = start_run(data, student, facts)
    train(run, Supervision.of(config, student.num_classes), student)
