"""What an evaluation of boxes, keypoints or instance masks counts: what was found in each image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from downstream.detection import coco_results
from downstream.detection.coco_protocol import (
    BOXES,
    THRESHOLDS,
    Predicted,
    Similarity,
    evaluate,
    keypoints_of,
    matches,
    pairs,
)
from downstream.detection.coco_protocol import bootstrap as bootstrap
from downstream.detection.data.boxes import Boxes
from downstream.detection.oks import scaled_distances
from downstream.detection.pasting import paste
from ssld.common.errors import InputError


class Detections:
    """Predictions by image beside the ground truth; they count when `reduce` has been called.

    Args:
        ground_truth: the objects of each image; an image's number is its place here.
        class_names: by class number.
        image_ids: the ids of `ground_truth` in the annotations.
        category_ids: the classes' ids there; -1 for a class that they do not know.
        similarity: by what detections are judged; boxes are measured besides.
        sizes: (h, w) of each image, which masks need.
        expected: numbers of the images that are to be evaluated, by default all.
    """

    def __init__(
        self,
        ground_truth: Sequence[Boxes],
        class_names: Sequence[str],
        *,
        image_ids: Sequence[int],
        category_ids: Sequence[int],
        similarity: Similarity = BOXES,
        sizes: Sequence[tuple[int, int]] = (),
        expected: Sequence[int] | None = None,
    ) -> None:
        self.ground_truth = ground_truth
        self.class_names = list(class_names)
        self.image_ids = list(image_ids)
        self.category_ids = list(category_ids)
        self.similarity = similarity
        self.sizes = sizes
        self._expected = range(len(ground_truth)) if expected is None else expected
        self._predicted: dict[int, Predicted | None] = {}
        self._precision: dict[Similarity, np.ndarray] = {}

    def add(self, image: int, prediction: Mapping[str, Tensor]) -> Predicted:
        """Count one image; returns what counts.

        Args:
            image: its number.
            prediction: as of `downstream/detection/networks.py`, in px of the image as it is
                stored, upright.

        Raises:
            InputError: the image was counted before; a value is not finite, or a box ends before
                it begins.
        """
        parts = (prediction[key].detach().cpu().numpy() for key in ("boxes", "scores", "labels"))
        boxes, scores, labels = parts
        boxes = boxes.reshape(-1, 4).astype(np.float32)
        keypoints = masks = None
        finite = np.isfinite(boxes).all() and np.isfinite(scores).all()
        if self.similarity.of == "keypoints":
            shape = (len(boxes), len(self.similarity.sigmas), 3)
            keypoints = prediction["keypoints"].detach().cpu().numpy().reshape(shape)
            keypoints = keypoints.astype(np.float32)
            finite &= np.isfinite(keypoints).all()
        elif self.similarity.of == "masks":
            finite &= bool(prediction["masks"].isfinite().all())
        if not ((boxes[:, 2:] >= boxes[:, :2]).all() and finite):
            raise InputError(
                f"image {self._name(image)}: a predicted box or score is not finite, or a box ends "
                "before it begins; the network has diverged, train it with a lower learning rate"
            )
        if self.similarity.of == "masks":
            masks = paste(prediction["masks"].detach(), prediction["boxes"], self.sizes[image])
        scores = scores.astype(np.float32)
        predicted = Predicted(boxes, scores, labels, keypoints, masks)
        self._count(image, predicted)
        return predicted

    def leave_out(self, image: int) -> None:
        """An image that cannot be read: neither its objects nor its detections count."""
        self._count(image, None)

    def _count(self, image: int, predicted: Predicted | None) -> None:
        if image in self._predicted:
            raise self._fault([image], "evaluated twice")
        self._predicted[image], self._precision = predicted, {}

    def reduce(self, accelerator: Accelerator, cut_short: bool) -> bool:
        """Collect the images of all processes; False when it was cut short on any of them.

        Raises:
            InputError: an image was evaluated twice, or, unless it was cut short, not at all.
        """
        parts: list[Any] = [(cut_short, self._predicted)]
        if accelerator.num_processes > 1:
            parts = gather_object(parts)
        numbers = np.array([image for _, counted in parts for image in counted], np.int64)
        distinct, times = np.unique(numbers, return_counts=True)
        if (times > 1).any():
            raise self._fault(distinct[times > 1].tolist(), "evaluated twice")
        short = any(short for short, _ in parts)
        lost = sorted(set(self._expected) - set(distinct.tolist()))
        if lost and not short:
            raise self._fault(lost, "not evaluated")
        gathered = {image: counted for _, part in parts for image, counted in part.items()}
        self._predicted, self._precision = dict(sorted(gathered.items())), {}
        return not short

    def _fault(self, images: list[int], what: str) -> InputError:
        named = ", ".join(map(self._name, images[:3])) + (", ..." if len(images) > 3 else "")
        return InputError(
            f"{len(images)} of {len(self.ground_truth)} images were {what} ({named}), so there is "
            "no average precision; evaluate again, each image in one process only"
        )

    def _name(self, image: int) -> str:
        return f"{image} (id {self.image_ids[image]})"

    @property
    def images(self) -> np.ndarray:
        """int64 [n]: the numbers of the images that count, ascending."""
        return np.array([image for image, _ in self._counted()], np.int64)

    def _counted(self) -> Iterator[tuple[int, Predicted]]:
        for image, predicted in sorted(self._predicted.items()):
            if predicted is not None:
                yield image, predicted

    @property
    def measured(self) -> tuple[Similarity, ...]:
        """What averages there are of: boxes, and what else detections are judged by."""
        return tuple(dict.fromkeys((BOXES, self.similarity)))

    def metrics(self) -> dict[str, float]:
        """COCO's averages over the classes that have objects.

        Returns:
            `ap`: over `THRESHOLDS`; `ap50` and `ap75`: at .5 and .75; `ap_small`, `ap_medium`,
            `ap_large`: `ap` of objects of that size; `keypoint_ap`, ... without small ones, or
            `mask_ap`, ...; `images`. What has no object is left out.
        """
        averages: dict[str, float | None] = {}
        for similarity in self.measured:
            precision = self._evaluated(similarity)  # [thresholds, recalls, classes, areas]
            # Of the last axis 0 is all; of `THRESHOLDS` 0 is .5, 5 is .75.
            parts = {"ap": precision[..., 0], "ap50": precision[:1, ..., 0]}
            parts |= {"ap75": precision[5:6, ..., 0]}
            parts |= {f"ap_{x}": precision[..., i] for i, x in enumerate(similarity.areas) if i}
            averages |= {f"{similarity.prefix}{key}": _mean(x) for key, x in parts.items()}
        averages |= {"images": float(len(self.images))}
        return {key: value for key, value in averages.items() if value is not None}

    def by_class(self) -> list[dict[str, Any]]:
        """By class number: `class`, its name; `objects`, how many there are, without crowds; `ap`
        and `ap50`, None where there is no object; so `keypoint_objects`, those with a labeled
        keypoint, and `keypoint_ap`, ..., or `mask_objects`, ..."""
        rows: list[dict[str, Any]] = [{"class": name} for name in self.class_names]
        for similarity in self.measured:
            precision, objects = self._evaluated(similarity), self._objects(similarity).sum(0)
            for label, row in enumerate(rows):
                of_class = {"objects": int(objects[label])}
                of_class |= {"ap": _mean(precision[:, :, label, 0])}
                of_class |= {"ap50": _mean(precision[:1, :, label, 0])}
                row |= {f"{similarity.prefix}{key}": value for key, value in of_class.items()}
        return rows

    def by_keypoint(self) -> list[dict[str, Any]]:
        """How far each keypoint is off in the objects that are found: those of whose class the best
        box that is left overlaps theirs by half, whatever its score.

        Returns:
            by number: `labeled`, how many keypoints of the objects are; `found`, how many of those
            in found objects; `near`, the share of these at `scaled_distances` up to 1; `median`
            distance over the square root of the object's area. None where there are none.
        """
        labeled, far = np.zeros(len(self.similarity.sigmas), np.int64), []
        for image, predicted in self._counted():
            objects = self.ground_truth[image]
            known = (keypoints_of(objects)[..., 2] > 0) & ~self.similarity.ignored(objects)[:, None]
            labeled += known.sum(0)
            for _, own, there, taken in pairs(objects, predicted, BOXES):
                hit = taken[:, 0] >= 0  # at `THRESHOLDS[0]`
                points, place = keypoints_of(predicted)[own[hit]], there[taken[hit, 0]]
                areas, truth = objects.areas[place], keypoints_of(objects)[place]
                away = scaled_distances(points, truth, areas, self.similarity.sigmas)
                far.append(np.where(known[place], away, np.nan))
        table = np.concatenate(far) if far else np.zeros((0, len(labeled)))
        return [
            {
                "labeled": int(count),
                "found": len(known := column[np.isfinite(column)]),
                "near": float((known <= 1).mean()) if len(known) else None,
                "median": float(2 * sigma * np.median(known)) if len(known) else None,
            }
            for count, column, sigma in zip(labeled, table.T, self.similarity.sigmas, strict=True)
        ]

    def _evaluated(self, similarity: Similarity) -> np.ndarray:
        """float64 [thresholds, recalls, classes, areas], -1 where there is no object."""
        if similarity not in self._precision:
            images = [(i, self.ground_truth[i], predicted) for i, predicted in self._counted()]
            self._precision[similarity] = evaluate(images, len(self.class_names), similarity)
        return self._precision[similarity]

    def _objects(self, similarity: Similarity) -> np.ndarray:
        """int32 [n, classes]: objects of each image, without those that are ignored."""
        count, rows = len(self.class_names), []
        for objects in (self.ground_truth[image] for image in self.images):
            counted = objects.labels[~similarity.ignored(objects)]
            rows.append(np.bincount(counted, minlength=count))
        return np.array(rows, np.int32).reshape(-1, count)

    def matches(self) -> dict[str, np.ndarray]:
        """What `bootstrap` reads, over n images and d detections of the m classes.

        Returns:
            image: int32 [d], place in `images`, ascending. label: int32 [d]. score: float32 [d].
            match: int8 [d, thresholds], 1 for a hit, 0 for a miss, -1 for one that does not
            count. objects: int32 [n, m], without those that are ignored. By what detections are
            judged.
        """
        columns = []
        for place, (number, predicted) in enumerate(self._counted()):
            # Place, not number: images that cannot be read have left gaps between the numbers.
            objects = self.ground_truth[number]
            for label, scores, match in matches(objects, predicted, self.similarity):
                same = np.full((len(scores), 2), (place, label), np.int32)
                columns.append((same[:, 0], same[:, 1], scores, match))
        empty = np.zeros(0, np.int32)  # so that there is something to concatenate, and its dtypes
        columns.append((empty, empty, empty, np.zeros((0, len(THRESHOLDS)), np.int8)))
        image, label, score, match = (np.concatenate(x) for x in zip(*columns, strict=True))
        return {
            "image": image,
            "label": label,
            "score": score.astype(np.float32),
            "match": match,
            "objects": self._objects(self.similarity),
        }

    def save(self, path: Path) -> None:
        """Write the detections as COCO results, see `coco_results.py`, with the ids of the
        annotations. Classes that these do not know are left out.

        Raises:
            InputError: it cannot be written.
        """
        coco_results.write(
            path,
            ((self.image_ids[image], predicted) for image, predicted in self._counted()),
            self.category_ids,
        )

    def load(self, path: Path) -> None:
        """Count what `save` wrote; an image without a line has no detection.

        Raises:
            InputError: the file is missing, damaged or of other images or classes; images were
                counted before.
        """
        numbers = {x: i for i, x in enumerate(self.image_ids)}
        classes = {x: label for label, x in enumerate(self.category_ids) if x >= 0}
        read = coco_results.read(path, numbers, classes, self.similarity)
        for image in self._expected:
            self._count(image, read[image])


def _mean(precision: np.ndarray) -> float | None:
    """Over what is known: -1 stands where a class has no object, which is no precision of 0."""
    known = precision[precision > -1]
    return float(known.mean()) if len(known) else None
