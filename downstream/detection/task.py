"""Detection as a task of the one loop (`ssld.engine`): a step's losses, and average precision on
held-out images. What the losses are is in the detectors' own files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from downstream.dense.drawing import GRID_PX, draw_boxes
from downstream.dense.model import save
from downstream.dense.report import write_report
from downstream.dense.task import AnnotatedScore, AnnotatedTask, ids_of
from downstream.detection.average_precision import Detections
from downstream.detection.batches import BoxBatch, BoxBatches
from downstream.detection.config import BoxAugmentConfig, DetectorConfig
from downstream.detection.data.boxes import Boxes, BoxSource
from downstream.detection.data.transforms import EvalBoxView, TrainBoxView
from downstream.detection.heads.detector import pad_to_largest
from downstream.detection.model import DetectionModel
from ssld.engine.per_image import write_held_out
from ssld.engine.start import Run

DRAWN_SCORE = 0.3
"""Least score of a box that is drawn."""
PREDICTIONS = "predictions.json"


class GroundTruth(Sequence[Boxes]):
    """The boxes of all held-out images, by number, read when they are asked for."""

    def __init__(self, sources: Sequence[BoxSource]) -> None:
        self.sources = sources
        self.places = [(source, i) for source in sources for i in range(len(source))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> Boxes:
        source, i = self.places[number]
        return source.boxes(i)

    def detections(self) -> Detections:
        """An evaluation that has not begun. Several sources' ids may be equal: then images are
        numbered from 1 on."""
        ids = [source.image_ids[i] for source, i in self.places]
        if len(set(ids)) < len(ids):
            ids = list(range(1, len(ids) + 1))
        first = self.sources[0]
        return Detections(
            self, first.class_names, image_ids=ids, category_ids=first.category_ids
        )  # fmt: skip


class DetectionScore(AnnotatedScore[Detections]):
    """Average precision, and the images that are drawn.

    Args:
        ground_truth: of all held-out images.
    """

    def __init__(self, ground_truth: GroundTruth) -> None:
        super().__init__(ground_truth.detections(), len(ground_truth))
        self.ground_truth = ground_truth

    def add(self, number: int, pixels: np.ndarray, predicted: dict[str, Tensor]) -> None:
        """Count one image.

        Args:
            pixels: uint8 [h, w, 3], of any size.
            predicted: "boxes" float [k, 4] xyxy in px of the image itself, "scores", "labels".
        """
        self.counts.add(number, predicted)
        if number in self.wanted:
            self.drawn[number] = self._draw(number, pixels, predicted)

    def _draw(
        self, number: int, pixels: np.ndarray, predicted: dict[str, Tensor]
    ) -> tuple[np.ndarray, np.ndarray]:
        source, i = self.ground_truth.places[number]
        image = Image.fromarray(pixels)
        image.thumbnail((2 * GRID_PX, 2 * GRID_PX))
        shown, names = np.asarray(image), self.counts.class_names
        height, width = source.image_size(i)
        scale = np.array([shown.shape[1] / width, shown.shape[0] / height] * 2)
        objects = self.ground_truth[number]
        sure = predicted["scores"] >= DRAWN_SCORE
        boxes, scores, labels = (predicted[k][sure].cpu() for k in ("boxes", "scores", "labels"))
        return (
            draw_boxes(shown, objects.xyxy * scale, objects.labels.tolist(), names),
            draw_boxes(shown, boxes.numpy() * scale, labels.tolist(), names, scores.tolist()),
        )


class DetectionTask(AnnotatedTask[BoxBatch, DetectionModel, DetectionScore]):
    """Find boxes.

    Args:
        sources, val: to train on, and held out.
        seed: the run's.
    """

    metric = "ap"

    def __init__(
        self,
        sources: Sequence[BoxSource],
        val: Sequence[BoxSource],
        augment: BoxAugmentConfig,
        detector: DetectorConfig,
        seed: int,
    ) -> None:
        self.augment, self.detector = augment, detector
        self.make_train = BoxBatches(sources, TrainBoxView(augment, seed))
        self.make_held_out = BoxBatches(val, EvalBoxView(augment))
        self.ground_truth = GroundTruth(val)

    def losses(self, detector: Callable[..., Any], batch: BoxBatch) -> dict[str, Tensor]:
        """{term: float32 [b]}, each the same for all readable images: a detector's losses are of
        the batch. An unreadable image is not shown to it."""
        kept = batch.weight.nonzero()[:, 0].tolist() or list(range(len(batch.ids)))
        targets = [batch.targets[i] for i in kept]
        # With square views all have the size of the batch.
        same = self.augment.resize == "square"
        images = batch.images if same else pad_to_largest(batch.images)
        terms = detector(images[kept], batch.sizes[kept], targets)
        return {name: loss.float().expand(len(batch.ids)) for name, loss in terms.items()}

    def evaluate(self, detector: DetectionModel, batches: Iterable[BoxBatch]) -> DetectionScore:
        """What the detector finds in held-out images."""
        score = DetectionScore(self.ground_truth)
        for batch in batches:
            result = detector(batch.images, batch.sizes)
            for i, number in enumerate(batch.numbers.tolist()):
                if batch.weight[i] == 0:
                    score.counts.leave_out(number)
                    continue
                scale = batch.scales[i].repeat(2).to(result[i]["boxes"])
                height, width = batch.sizes[i].tolist()
                score.add(
                    number,
                    batch.images[i, :height, :width].cpu().numpy(),
                    {**result[i], "boxes": result[i]["boxes"] / scale},
                )
        return score

    def export(self, network: DetectionModel, folder: Path, step: int) -> str:
        """Write the detector; returns the sha256 of its weights."""
        head, view = asdict(self.detector), asdict(self.augment)
        return save(network, folder, step, task="detection", head=head, view=view)

    def keep(self, run: Run, score: DetectionScore, step: int, best: bool) -> None:
        """The drawn images, and of the exported network what it found in each image."""
        score.write_pictures(run, step)
        if best:
            detections = score.counts
            ids = ids_of(run, detections.images)
            write_held_out(run.folder.path, ids, **detections.matches())
            detections.save(run.folder.path / PREDICTIONS)

    def write_report(self, run: Run, network: DetectionModel, score: DetectionScore | None) -> None:
        """Write report.html."""
        names = {"ap": "AP", "ap50": "AP50", "ap75": "AP75"}
        sizes = {f"ap_{size}": size for size in ("small", "medium", "large")}
        share = {"low": 0, "high": 1.02}
        rows = [
            [str(row["class"]), f"{row['objects']:,}", _share(row["ap"]), _share(row["ap50"])]
            for row in (score.counts.by_class() if score else [])
        ]
        write_report(
            run,
            [("average precision", names, share), ("AP by size of the object", sizes, share)],
            (rows, ("class", "objects", "AP", "AP50")),
        )


def _share(value: float | None) -> str:
    return "no object" if value is None else f"{value:.3f}"
