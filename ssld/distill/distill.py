"""Label-free distillation: `accelerate launch -m ssld.distill --config F.yaml [--a.b value ...]`.

Cui et al. 2021, "Beyond Self-Supervision" (SSLD), section 3: the student P minimises a divergence
between its own and a frozen teacher Q's prediction on every image of T and U alike,

    min over P of  sum over x in T + U of  D(Q(x), P(x))  + weight decay          (equation 3)

and the labels of T are never read. `Distillation.losses` below is that sum; the loop around it is
`ssld/engine/loop.py`, the divergences are `ssld/distill/divergence.py`, the teacher is `ssld/models/teacher.py`.
The same command runs under `python -m`, `accelerate launch -m` and `torchrun -m`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ssld.distill.config import DistillConfig, LossConfig
from ssld.distill.task import Classification

if TYPE_CHECKING:  # torch takes seconds to import: --help must not
    from torch import Tensor

    from ssld.data.loading import Batch
    from ssld.health.classification_metrics import Tally
    from ssld.models.classifier import Classifier
    from ssld.models.teacher import Teacher


class Distillation(Classification):
    """The student's task: predict what the teacher predicts.

    Args:
        teacher: frozen; sees the very views that the student sees, or `batch.other_images`.
        loss: which divergence, at which temperature.
    """

    def __init__(self, teacher: Teacher, loss: LossConfig) -> None:
        self.teacher = teacher
        self.loss = loss

    def losses(self, student: Callable[[Tensor], Tensor], batch: Batch) -> dict[str, Tensor]:
        """One value per image, float32 [b]; `batch.labels` is not read.

        Args:
            student: uint8 [b, h, w, 3] -> logits [b, classes].
        """
        from ssld.distill.divergence import training_divergence

        loss = self.loss
        seen = batch.images if batch.other_images is None else batch.other_images
        targets = self.teacher(seen, loss.temperature)  # log-probabilities [b, classes]
        logits = student(batch.images)  # [b, classes]
        distance = training_divergence(loss.name, logits, targets, temperature=loss.temperature)
        return {"divergence": loss.weight * distance}

    def evaluate(self, student: Classifier, batches: Iterable[Batch]) -> Tally:
        """What student and teacher say about held-out images, at the loss's temperature.

        Raises:
            InputError: the teacher's predictions for some of them are no numbers.
        """
        from ssld.distill.divergence import divergence
        from ssld.health.classification_metrics import Tally
        from ssld.models.teacher_faults import require_numbers

        loss = self.loss
        tally = Tally(self.teacher.num_classes, next(student.parameters()).device)
        for batch in batches:
            targets = self.teacher(batch.images, loss.temperature)
            require_numbers(self.teacher, batch, targets)
            logits = student(batch.images).float()
            distance = divergence(loss.name, logits, targets, temperature=loss.temperature)
            tally.add(batch, logits / loss.temperature, targets, distance)
        return tally


def distill(config: DistillConfig) -> None:
    """Check everything that can be checked, then train, export and report into `config.out`.

    Raises:
        InputError: bad settings, sources, weights or launcher; nothing was written then.
    """
    from ssld.distill.setup import Setup
    from ssld.distill.verify_teacher import verify_teacher
    from ssld.engine.loop import train
    from ssld.models.teacher import open_teacher

    setup = Setup(config)
    teacher, digest = open_teacher(config.teachers or [config.teacher], config.precision)
    student = setup.open_student(teacher.num_classes, teacher.label_names)
    setup.describe({"student": student, **named(teacher)})
    if config.loss.name == "js":
        setup.accelerator.print(
            "loss: js trains as 16 JSD; with 1000 or more classes kl starts faster "
            "(docs/divergences.md)"
        )
    verify_teacher(setup, teacher)
    run = setup.start(student, teacher=teacher, teacher_sha256=digest)
    train(run, Distillation(teacher, config.loss), student)


def named(teacher: Teacher) -> dict[str, Classifier]:
    """The teacher's networks by the names that tables use."""
    networks = list(teacher.networks)
    return dict(zip(teacher.names, networks, strict=True))
