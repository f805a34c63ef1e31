"""Segmentation as a task of the one loop (`ssld/engine/loop.py`): a step's losses, and the mean
intersection over union on held-out images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from markupsafe import Markup
from torch import Tensor

from downstream.dense.drawing import Legend, draw_mask
from downstream.dense.model import save
from downstream.dense.report import write_report
from downstream.dense.sources import Sources
from downstream.dense.task import AnnotatedScore, AnnotatedTask, ids_of, with_one_view
from downstream.segmentation.batches import MaskBatch, MaskBatches
from downstream.segmentation.config import SegmentationConfig, TestConfig
from downstream.segmentation.confusion import Confusion, class_iou
from downstream.segmentation.data.masks import MaskSource
from downstream.segmentation.data.transforms import EvalMaskView, TrainMaskView
from downstream.segmentation.losses import counted, dice_loss, pixel_loss, weights_of
from downstream.segmentation.model import SegmentationModel
from ssld.common.errors import attempt
from ssld.engine.per_image import write_held_out
from ssld.engine.start import Run
from ssld.report import page, plots


class SegmentationScore(AnnotatedScore[Confusion]):
    """Confusion of classes, and the images that are drawn.

    Args:
        legend: names and colours of the classes.
        images: number of held-out images.
        several_views: whether images are seen in several views; then what one of them says counts
            apart, too.
    """

    def __init__(self, legend: Legend, images: int, several_views: bool = False) -> None:
        super().__init__(Confusion(len(legend)), images, legend)
        self.palette = np.array([colour for _, colour in legend], np.uint8)
        self.one_view = Confusion(len(legend)) if several_views else None

    def add(
        self,
        number: int,
        pixels: Tensor,
        ground_truth: Tensor,
        predicted: Tensor,
        in_one_view: Tensor,
    ) -> None:
        """Count one image: uint8 [h, w, 3], and class numbers uint8 [h, w], of one view alone,
        too."""
        self.counts.add(number, ground_truth, predicted)
        if self.one_view is not None:
            self.one_view.add(number, ground_truth, in_one_view)
        if number in self.wanted:
            image, *masks = (x.cpu().numpy() for x in (pixels, ground_truth, predicted))
            left, right = (draw_mask(image, mask, self.palette) for mask in masks)
            self.drawn[number] = (
                left,
                right,
                set(np.unique(masks).tolist()) & set(range(len(self.legend))),
            )

    def reduce(self, accelerator: Accelerator, cut_short: bool) -> bool:
        """See `AnnotatedScore`."""
        whole = super().reduce(accelerator, cut_short)
        return whole if self.one_view is None else self.one_view.reduce(accelerator, cut_short)

    def metrics(self) -> dict[str, float]:
        """See `Confusion.metrics`; the same of one view alone under `miou_one_view` and so on;
        `classes`: how many have pixels in the ground truth."""
        metrics = with_one_view(self.counts, self.one_view)
        return {**metrics, "classes": float(self.counts.total.any(1).sum())} if metrics else {}


class SegmentationTask(AnnotatedTask[MaskBatch, SegmentationModel, SegmentationScore]):
    """Say the class of every pixel.

    Args:
        sources: to train on and held out.
        mean: of the network's normalisation.
    """

    metric = "miou"

    def __init__(
        self,
        sources: Sources[MaskSource],
        config: SegmentationConfig,
        mean: Sequence[float],
        aux_weight: float,
    ) -> None:
        self.config, self.aux_weight = config, aux_weight
        self.joint = bool(sources.generated)
        view, human = TrainMaskView(config.augment, config.seed, mean), sources.train
        self.make_train = MaskBatches(sources.seen, view, len(human))
        self.make_held_out = MaskBatches(sources.val, EvalMaskView())
        self.names, self.palette = human[0].class_names, human[0].palette
        self.class_weights = weights_of(config.loss.class_weights, self.names)
        self.mask_ids = [row.id for row in human[0].labels.table.classes]
        self.images = sum(map(len, sources.val))

    def dense_losses(self, segmenter: Callable[..., Any], batch: MaskBatch) -> dict[str, Tensor]:
        """{term: float32 [b]}. Every pixel of a class in the batch over all processes weighs the
        same; those that do not count, and those of an unreadable image, nothing."""
        weights, dice = self.class_weights, self.config.loss.dice_weight
        valid = counted(batch.masks, weights)
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(valid)
            valid /= torch.distributed.get_world_size()
        logits = segmenter(batch.images)
        main, *auxiliary = logits if isinstance(logits, tuple) else (logits,)
        terms = {"pixels": pixel_loss(main, batch.masks, valid, weights)}
        if dice:
            terms["dice"] = dice * dice_loss(main, batch.masks)
        for further in auxiliary:
            terms["auxiliary"] = self.aux_weight * pixel_loss(further, batch.masks, valid, weights)
        return terms

    def evaluate(
        self, segmenter: SegmentationModel, batches: Iterable[MaskBatch]
    ) -> SegmentationScore:
        """What the segmenter says of held-out images."""
        return score_of(segmenter, batches, self.legend, self.images, self.config.test)

    @property
    def legend(self) -> Legend:
        """Of all classes."""
        return list(zip(self.names, self.palette.tolist(), strict=True))

    def draw_view(self, batch: MaskBatch, i: int) -> tuple[np.ndarray, np.ndarray, set[int]]:
        """See `downstream/dense/training_views.py`."""
        view, mask = batch.images[i].numpy(), batch.masks[i].numpy()
        known = set(np.unique(mask).tolist()) & set(range(len(self.names)))
        return view, draw_mask(view, mask, self.palette), known

    def export(self, network: SegmentationModel, folder: Path, step: int) -> str:
        """Write the segmenter; returns the sha256 of its weights."""
        view = {**asdict(self.config.test), "palette": self.palette.tolist()}
        view |= {"trained_on": self.config.augment.crop, "ids": self.mask_ids}
        head = asdict(self.config.segmenter)
        return save(network, folder, step, task="segmentation", head=head, view=view)

    def keep(self, run: Run, score: SegmentationScore, step: int, best: bool) -> None:
        """The drawn images, and of the exported network the confusion in each image."""
        score.write_pictures(run, step)
        if best:
            ids = ids_of(run, score.counts.images)
            write_held_out(run.folder.path, ids, confusion=score.counts.per_image)

    def write_report(
        self, run: Run, network: SegmentationModel, score: SegmentationScore | None
    ) -> None:
        """Write report.html."""
        names = {"miou": "mean IoU", "pixel_accuracy": "pixels", "mean_accuracy": "mean of classes"}
        curves = [("share right, IoU", names, {"low": 0, "high": 1.02})]
        table, figures = ([], ()), []
        if score is not None:
            total = score.counts.total
            table = by_class(total, self.names)
            figures = [attempt("the confusion", lambda: confusion_figure(total, self.names))]
        write_report(run, curves, table, figures)


def score_of(
    segmenter: SegmentationModel,
    batches: Iterable[MaskBatch],
    legend: Legend,
    images: int,
    test: TestConfig,
) -> SegmentationScore:
    """What a segmenter says of images, seen as `test` says.

    Args:
        legend: names and colours of the classes.
        images: how many there are.
    """
    score = SegmentationScore(legend, images, several_views=test.views > 1)
    for batch in batches:
        for image, mask, number, weight in zip(
            batch.images, batch.masks, batch.numbers.tolist(), batch.weight, strict=True
        ):
            if weight > 0:
                score.add(number, image, mask, *segmenter.segment_both(image, **vars(test)))
    return score


def by_class(total: np.ndarray, names: Sequence[str]) -> tuple[list[list[str]], tuple[str, ...]]:
    """Rows and head of a table.

    Args:
        total: int64 [classes, classes], rows are the ground truth.
    """
    shares = total.sum(1) / max(1, total.sum())
    rows = [
        [name, f"{share:.1%}", "does not occur" if np.isnan(iou) else f"{iou:.3f}"]
        for name, share, iou in zip(names, shares, class_iou(total), strict=True)
    ]
    return rows, ("class", "of all pixels", "IoU")


def confusion_figure(matrix: np.ndarray, names: Sequence[str]) -> Markup:
    """What pixels of each class are taken for.

    Args:
        matrix: int64 [classes, classes], rows are the ground truth.
    """
    share = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    figure = plots.new_figure()
    figure.set_size_inches(7, 6)
    plot = figure.subplots()
    plot.imshow(share, cmap="Blues", vmin=0, vmax=1)
    places = range(len(names))
    labels = [plots.label(name) for name in names]
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
    return page.plot("share of each class's pixels", figure)
