"""The score of a detection run: what was found in held-out images beside the ground truth, drawn
for some of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from downstream.dense.drawing import (
    GRID_PX,
    draw_boxes,
    draw_instances,
    draw_keypoints,
    legend_of,
)
from downstream.dense.task import AnnotatedScore, with_one_view
from downstream.detection.average_precision import Detections
from downstream.detection.batches import BoxBatch
from downstream.detection.coco_protocol import BOXES, Predicted, Similarity
from downstream.detection.config import BoxAugmentConfig, BoxTestConfig
from downstream.detection.data.boxes import Boxes, BoxSource
from downstream.detection.inference import predict_both
from downstream.detection.model import DetectionModel

DRAWN_SCORE = 0.3
"""Least score of a box that is drawn."""
DRAWN_ELSE = 3
"""Boxes that are drawn where none has it."""


class GroundTruth(Sequence[Boxes]):
    """The objects of all held-out images, by number, read when they are asked for.

    Args:
        similarity: by what detections are judged.
    """

    def __init__(self, sources: Sequence[BoxSource], similarity: Similarity = BOXES) -> None:
        self.sources = sources
        self.similarity = similarity
        self.keypoints = sources[0].keypoints
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
            self, first.class_names, image_ids=ids, category_ids=first.category_ids,
            similarity=self.similarity, sizes=[x.image_size(i) for x, i in self.places],
        )  # fmt: skip


class DetectionScore(AnnotatedScore[Detections]):
    """Average precision, and the images that are drawn.

    Args:
        ground_truth: of all held-out images.
        several_views: whether images are seen in several views; then what is found in one of them
            counts apart, too.
    """

    def __init__(self, ground_truth: GroundTruth, several_views: bool = False) -> None:
        counts = ground_truth.detections()
        note = f", scores from {DRAWN_SCORE}; where none has it, the best {DRAWN_ELSE}"
        super().__init__(counts, len(ground_truth), legend_of(counts.class_names), note)
        self.ground_truth = ground_truth
        self.one_view = ground_truth.detections() if several_views else None

    def add(
        self,
        number: int,
        pixels: Tensor,
        predicted: dict[str, Tensor],
        in_one_view: dict[str, Tensor],
    ) -> None:
        """Count one image.

        Args:
            pixels: uint8 [h, w, 3], of any size.
            predicted: as of `downstream/detection/networks.py`, in px of the image itself.
            in_one_view: the same, of one view alone.
        """
        found = self.counts.add(number, predicted)
        if self.one_view is not None:
            self.one_view.add(number, in_one_view)
        if number in self.wanted:
            self.drawn[number] = self._draw(number, pixels.cpu().numpy(), found)

    def leave_out(self, number: int) -> None:
        """An image that cannot be read."""
        for counts in filter(None, (self.counts, self.one_view)):
            counts.leave_out(number)

    def reduce(self, accelerator: Accelerator, cut_short: bool) -> bool:
        """See `AnnotatedScore`."""
        whole = super().reduce(accelerator, cut_short)
        return whole if self.one_view is None else self.one_view.reduce(accelerator, cut_short)

    def metrics(self) -> dict[str, float]:
        """See `Detections.metrics`; the same of one view alone under `ap_one_view` and so on."""
        return with_one_view(self.counts, self.one_view)

    def _draw(
        self, number: int, pixels: np.ndarray, found: Predicted
    ) -> tuple[np.ndarray, np.ndarray, set[int]]:
        source, i = self.ground_truth.places[number]
        image = Image.fromarray(pixels)
        image.thumbnail((2 * GRID_PX, 2 * GRID_PX))
        shown = np.asarray(image)
        height, width = source.image_size(i)
        scale = (shown.shape[1] / width, shown.shape[0] / height)
        truth, sure = self.ground_truth[number], np.flatnonzero(found.scores >= DRAWN_SCORE)
        if not len(sure):
            sure = np.argsort(-found.scores, kind="stable")[:DRAWN_ELSE]
        every = np.arange(len(truth.labels))
        there = Predicted(
            truth.xyxy, np.ones(len(every)), truth.labels, truth.keypoints, truth.masks
        )
        return (
            self._drawn(shown, there, every, scale),
            self._drawn(shown, found, sure, scale, found.scores[sure].tolist()),
            {*truth.labels.tolist(), *found.labels[sure].tolist()},
        )

    def _drawn(
        self,
        pixels: np.ndarray,
        objects: Predicted,
        chosen: np.ndarray,
        scale: tuple[float, float],
        scores: Sequence[float] | None = None,
    ) -> np.ndarray:
        """Boxes, and what is judged in them; keypoints that are hidden are hollow."""
        labels, what = objects.labels[chosen].tolist(), self.ground_truth.similarity.of
        if what == "masks" and objects.masks is not None:
            pixels = draw_instances(pixels, [objects.masks[i] for i in chosen], labels)
        boxes = objects.boxes[chosen] * np.array(scale * 2)
        pixels = draw_boxes(pixels, boxes, labels, self.counts.class_names, scores)
        known = self.ground_truth.keypoints
        if what == "keypoints" and objects.keypoints is not None and known is not None:
            points = objects.keypoints[chosen] * np.array([*scale, 1])
            filled = 0.0 if scores is not None else 2.0
            pixels = draw_keypoints(pixels, points, known, filled=filled)
        return pixels


def score_of(
    detector: DetectionModel,
    batches: Iterable[BoxBatch],
    ground_truth: GroundTruth,
    augment: BoxAugmentConfig,
    test: BoxTestConfig,
) -> DetectionScore:
    """What a detector finds in images, seen as `augment` and `test` say."""
    score = DetectionScore(ground_truth, several_views=test.views > 1)
    for batch in batches:
        for i, number in enumerate(batch.numbers.tolist()):
            if batch.weight[i] == 0:
                score.leave_out(number)
                continue
            height, width = batch.sizes[i].tolist()
            pixels = batch.images[i, :height, :width]
            score.add(number, pixels, *predict_both(detector, pixels, augment, test))
    return score
