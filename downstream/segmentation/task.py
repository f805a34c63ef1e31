"""Segmentation as a task of the one loop (`ssld/engine/loop.py`): a step's losses, and the mean
intersection over union on held-out images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from downstream.dense import trained
from downstream.dense.drawing import draw_mask, sheet
from downstream.dense.report import write_picture, write_report
from downstream.dense.task import AnnotatedTask, drawn_numbers, held_out, ids_of, training
from downstream.segmentation.batches import MaskBatch, MaskBatches
from downstream.segmentation.config import SegmentationConfig
from downstream.segmentation.confusion import Confusion, class_iou
from downstream.segmentation.data.masks import MaskSource
from downstream.segmentation.data.transforms import EvalMaskView, TrainMaskView
from downstream.segmentation.losses import IGNORE, pixel_loss
from downstream.segmentation.model import SegmentationModel
from ssld.common.attempt import attempt
from ssld.engine.per_image import write_held_out
from ssld.engine.start import Run
from ssld.report import page


class SegmentationScore:
    """Confusion of classes, and the images that are drawn.

    Args:
        images: number of held-out images.
    """

    def __init__(self, num_classes: int, images: int) -> None:
        self.confusion = Confusion(num_classes)
        self.wanted = set(drawn_numbers(images))
        self.drawn: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        """{image: pixels uint8 [h, w, 3], truth and prediction uint8 [h, w]}."""

    def add(self, number: int, pixels: Tensor, truth: Tensor, found: Tensor) -> None:
        """Count one image: uint8 [h, w, 3], and class numbers uint8 [h, w]."""
        self.confusion.add(number, truth, found)
        if number in self.wanted:
            parts = (x.cpu().numpy() for x in (pixels, truth, found))
            self.drawn[number] = tuple(parts)  # type: ignore[assignment]

    def reduce(self, accelerator: Accelerator, cut_short: bool) -> bool:
        """Collect the images of all processes; False when it was cut short on any of them."""
        if accelerator.num_processes > 1:
            self.drawn = dict(gather_object(list(self.drawn.items())))
        return self.confusion.reduce(accelerator, cut_short)

    def metrics(self) -> dict[str, float]:
        """See `Confusion.metrics`; `classes`: how many have pixels in the truth."""
        found = self.confusion.metrics()
        return {**found, "classes": float(self.confusion.total.any(1).sum())} if found else {}


class SegmentationTask(AnnotatedTask):
    """Say the class of every pixel.

    Args:
        sources, val: to train on, and held out.
        mean: of the network's normalisation.
    """

    metric = "miou"

    def __init__(
        self,
        sources: Sequence[MaskSource],
        val: Sequence[MaskSource],
        config: SegmentationConfig,
        mean: Sequence[float],
        aux_weight: float,
    ) -> None:
        self.config, self.aux_weight = config, aux_weight
        self.make_train = MaskBatches(sources, TrainMaskView(config.augment, config.seed, mean))
        self.make_held_out = MaskBatches(val, EvalMaskView())
        self.names, self.palette = sources[0].class_names, sources[0].palette
        self.images = sum(map(len, val))

    def train_batches(self, run: Run, first_step: int, last_step: int) -> Iterator[MaskBatch]:
        """This process's batches of steps [first_step, last_step)."""
        return training(run, self.make_train, first_step, last_step)

    def held_out(self, run: Run) -> Iterator[MaskBatch]:
        """This process's held-out images, each once over all processes."""
        return held_out(run, self.make_held_out)

    def losses(self, segmenter: Callable[..., Any], batch: MaskBatch) -> dict[str, Tensor]:
        """{term: float32 [b]}. Every pixel of the batch over all processes that counts weighs the
        same; those of an unreadable image do not."""
        valid = (batch.masks != IGNORE).sum() / len(batch.ids)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(valid)
            valid /= torch.distributed.get_world_size()
        logits = segmenter(batch.images)
        main, *auxiliary = logits if isinstance(logits, tuple) else (logits,)
        terms = {"pixels": pixel_loss(main, batch.masks, valid)}
        for further in auxiliary:
            terms["auxiliary"] = self.aux_weight * pixel_loss(further, batch.masks, valid)
        return terms

    def evaluate(
        self, segmenter: SegmentationModel, batches: Iterable[MaskBatch]
    ) -> SegmentationScore:
        """What the segmenter says of held-out images."""
        score = SegmentationScore(len(self.names), self.images)
        for batch in batches:
            for image, truth, number, weight in zip(
                batch.images, batch.masks, batch.numbers.tolist(), batch.weight, strict=True
            ):
                if weight > 0:
                    found = segmenter.segment(image, **vars(self.config.test))
                    score.add(number, image, truth, found)
        return score

    def export(self, network: SegmentationModel, folder: Path, step: int) -> str:
        """Write the segmenter; returns the sha256 of its weights."""
        view = {**asdict(self.config.test), "palette": self.palette.tolist()}
        view["trained_on"] = self.config.augment.crop
        head = asdict(self.config.segmenter)
        return trained.save(network, folder, step, task="segmentation", head=head, view=view)

    def keep(self, run: Run, score: SegmentationScore, step: int, best: bool) -> None:
        """The drawn images, and of the exported network the confusion in each image."""
        if score.drawn:
            pairs = [
                tuple(draw_mask(pixels, mask, self.palette) for mask in (truth, found))
                for _, (pixels, truth, found) in sorted(score.drawn.items())
            ]
            write_picture(run, step, lambda: sheet(pairs))  # type: ignore[arg-type]
        if best:
            confusion = score.confusion
            ids = ids_of(run, confusion.images)
            write_held_out(run.folder.path, ids, confusion=confusion.per_image)

    def write_report(
        self, run: Run, network: SegmentationModel, score: SegmentationScore | None
    ) -> None:
        """Write report.html."""
        names = {"miou": "mean IoU", "pixel_accuracy": "pixels", "mean_accuracy": "mean of classes"}
        curves = [("share right, IoU", names, {"low": 0, "high": 1.02})]
        rows, figures = [], []
        if score is not None:
            total = score.confusion.total
            shares = total.sum(1) / max(1, total.sum())
            rows = [
                [name, f"{share:.1%}", "does not occur" if np.isnan(iou) else f"{iou:.3f}"]
                for name, share, iou in zip(self.names, shares, class_iou(total), strict=True)
            ]
            figures = [attempt("the confusion", lambda: confusion_figure(total, self.names))]
        write_report(run, curves, (rows, ("class", "of all pixels", "IoU")), figures)


def confusion_figure(matrix: np.ndarray, names: Sequence[str]) -> str:
    """What pixels of each class are taken for.

    Args:
        matrix: int64 [classes, classes], rows are the truth.
    """
    share = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    figure = page.new_figure()
    figure.set_size_inches(7, 6)
    plot = figure.subplots()
    plot.imshow(share, cmap="Blues", vmin=0, vmax=1)
    places = range(len(names))
    labels = [page.label(name) for name in names]
    plot.set_xticks(places, labels, rotation=60, ha="right", fontsize=7)
    plot.set_yticks(places, labels, fontsize=7)
    if len(names) <= 20:
        for i in places:
            for j in places:
                if share[i, j] >= 0.01:
                    colour = "white" if share[i, j] > 0.5 else "black"
                    text = f"{share[i, j]:.0%}"
                    plot.text(j, i, text, ha="center", va="center", color=colour, fontsize=6)
    plot.set_xlabel("taken for")
    plot.set_ylabel("is")
    return page.drawn("share of each class's pixels", figure)
