"""Scale-Equivalent Distillation as a task of the one loop: a step's losses on labeled and unlabeled
images (Guo et al. 2022, equation 1). Those on unlabeled images are in `consistency.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from downstream.dense.preflight import Readable
from downstream.dense.sources import Sources
from downstream.detection.data.boxes import BoxSource
from downstream.detection.data.transforms import TrainBoxView
from downstream.detection.heads.detector import pad_to_largest
from downstream.detection.model import DetectionModel
from downstream.detection.task import DetectionTask
from downstream.sed.batches import SedBatch, SedBatches
from downstream.sed.config import SedConfig
from downstream.sed.health import Look, look_at, symptoms
from downstream.sed.model import Unlabeled
from downstream.sed.views import UnlabeledView
from ssld.data.loading import train_batches
from ssld.engine.start import Run


class SedTask(DetectionTask):
    """Find boxes, and learn from images without any.

    Args:
        unlabeled: sources of images without annotations.
        held_out: digests of images that must not be among them, see `UnlabeledView`.
    """

    teacher: DetectionModel
    """The moving average of the student."""

    def __init__(
        self,
        sources: Sources[BoxSource],
        unlabeled: Sequence[Readable],
        config: SedConfig,
        held_out: Mapping[bytes, str] | None = None,
    ) -> None:
        super().__init__(sources, config.augment, config.test, config.detector, config.seed)
        self.settings, self.unlabeled = config.consistency, unlabeled
        self.learns = bool(self.settings.scale_weight or self.settings.distill_weight)
        """From unlabeled images."""
        self.per_labeled = config.data.unlabeled_per_labeled
        self.make_steps = SedBatches(
            sources.train,
            unlabeled,
            TrainBoxView(config.augment, config.seed),
            UnlabeledView(config.augment, config.strong, config.seed, held_out),
            config.consistency.scales,
        )
        counts = [x for source in sources.train for x in source.report.classes]
        self.labeled_classes = len({x.name for x in counts if x.boxes})
        """Of which there is a labeled box."""
        self.look: Look | None = None

    def averaged(self, average: DetectionModel) -> None:
        """The average is the teacher."""
        self.teacher = average
        self.buffers = {name: x.clone() for name, x in average.model.named_buffers()}

    def train_batches(  # type: ignore[override]
        self, run: Run, first_step: int, last_step: int
    ) -> Iterator[SedBatch]:
        """This process's batches of steps [first_step, last_step)."""
        config = run.config
        return train_batches(
            self.make_steps,
            run.sampler,
            batch_size=config.batch_size * (1 + self.per_labeled),
            rank=run.rank,
            world_size=run.world_size,
            first_step=first_step,
            last_step=last_step,
            accumulate=config.accumulate,
            workers=config.data.workers,
            pin=run.accelerator.device.type == "cuda",
        )

    def losses(  # type: ignore[override]
        self, detector: Callable[..., Any], batch: SedBatch
    ) -> dict[str, Tensor]:
        """{term: float32 [b + u]}, 0 for an unreadable image, which is not shown to the detector.

        The mean of a term over all b + u images is what equation 1 has of it: of supervised ones
        the mean over labeled images, of the others n_u / n_s times that over unlabeled ones.
        """
        labeled = len(batch.images)
        rows = _kept(batch.weight[:labeled])
        others = _kept(batch.weight[labeled:])
        pad = pad_to_largest if self.augment.resize != "square" else (lambda x: x)
        unlabeled = Unlabeled(
            pad(batch.weak)[others],
            pad(batch.strong)[others],
            batch.unlabeled_sizes[others],
            batch.scale,
            self.teacher.model,
            self.settings,
        )
        images, targets = pad(batch.images)[rows], [batch.targets[i] for i in rows.tolist()]
        if not self.learns:
            human = detector(images, batch.sizes[rows], targets)
            return self._spread(human, rows, len(batch.ids))
        human, soft = detector(images, batch.sizes[rows], targets, unlabeled=unlabeled)
        return {
            **self._spread(human, rows, len(batch.ids)),
            **self._spread(soft, labeled + others, len(batch.ids)),
        }

    def _spread(self, terms: dict[str, Tensor], rows: Tensor, batch: int) -> dict[str, Tensor]:
        """Losses [len(rows)] of some images as losses [batch] of all."""
        shapes = {name: tuple(loss.shape) for name, loss in terms.items()}
        assert set(shapes.values()) == {(len(rows),)}, f"a loss per image is wanted, not {shapes}"
        return {
            name: loss.new_zeros(batch).index_copy(0, rows, loss).float() * (1 + self.per_labeled)
            for name, loss in terms.items()
        }

    def further_metrics(self, run: Run, network: DetectionModel, step: int) -> dict[str, float]:
        """What the teacher says of a few unlabeled images; see `health.look_at`."""
        with torch.inference_mode(), run.accelerator.autocast():
            self.look = look_at(network, self.unlabeled, self.augment, run.accelerator.device)
        return self.look.metrics()

    def verdict(
        self,
        run: Run,
        network: DetectionModel,
        metrics: dict[str, float],
        *,
        step: int,
        lr: float,
        initial: dict[str, Tensor],
    ) -> str:
        """How it goes, in a sentence, and what is wrong with learning from unlabeled images."""
        text = super().verdict(run, network, metrics, step=step, lr=lr, initial=initial)
        found = symptoms(
            self.settings,
            run.folder.history,
            student=network.model,
            teacher=self.teacher.model,
            initial=initial,
            buffers=self.buffers,
            metric=self.metric,
            metrics=metrics,
            look=self.look,
            classes=self.labeled_classes,
            share=step / run.total_steps,
        )
        return "; ".join([text, *found])


def _kept(weight: Tensor) -> Tensor:
    """int64 [k]: the readable images; all of them where there is none, which then weigh nothing."""
    rows = cast(Tensor, weight.nonzero()[:, 0])
    return rows if len(rows) else torch.arange(len(weight), device=weight.device)
