"""The score of a detection run: what was found in held-out images beside the ground truth, drawn
for some of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from downstream.dense.drawing import GRID_PX, draw_boxes
from downstream.dense.task import AnnotatedScore
from downstream.detection.average_precision import Detections
from downstream.detection.data.boxes import Boxes, BoxSource

DRAWN_SCORE = 0.3
"""Least score of a box that is drawn."""


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
