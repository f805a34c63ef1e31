"""The score of a detection run: what was found in held-out images beside the ground truth, drawn
for some of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from downstream.dense.drawing import GRID_PX, draw_boxes
from downstream.dense.task import AnnotatedScore, with_one_view
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
        several_views: whether images are seen in several views; then what is found in one of them
            counts apart, too.
    """

    def __init__(self, ground_truth: GroundTruth, several_views: bool = False) -> None:
        super().__init__(ground_truth.detections(), len(ground_truth))
        self.ground_truth = ground_truth
        self.one_view = ground_truth.detections() if several_views else None

    def add(
        self,
        number: int,
        pixels: np.ndarray,
        predicted: dict[str, Tensor],
        in_one_view: dict[str, Tensor],
    ) -> None:
        """Count one image.

        Args:
            pixels: uint8 [h, w, 3], of any size.
            predicted: "boxes" float [k, 4] xyxy in px of the image itself, "scores", "labels".
            in_one_view: the same, of one view alone.
        """
        self.counts.add(number, predicted)
        if self.one_view is not None:
            self.one_view.add(number, in_one_view)
        if number in self.wanted:
            self.drawn[number] = self._draw(number, pixels, predicted)

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
