"""What an evaluation of boxes counts: what was found in each image."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from downstream.detection.coco_protocol import AREAS, THRESHOLDS, Predicted, evaluate, matches, xywh
from downstream.detection.coco_protocol import bootstrap as bootstrap
from downstream.detection.data.boxes import Boxes
from ssld.common.errors import InputError, one_line
from ssld.common.files import write_atomically


class Detections:
    """Predictions by image beside the ground truth; they count when `reduce` has been called.

    Args:
        ground_truth: the objects of each image; an image's number is its place here.
        class_names: by class number.
        image_ids: the ids of `ground_truth` in the annotations.
        category_ids: the classes' ids there; -1 for a class that they do not know.
        expected: numbers of the images that are to be evaluated, by default all.
    """

    def __init__(
        self,
        ground_truth: Sequence[Boxes],
        class_names: Sequence[str],
        *,
        image_ids: Sequence[int],
        category_ids: Sequence[int],
        expected: Sequence[int] | None = None,
    ) -> None:
        self.ground_truth = ground_truth
        self.class_names = list(class_names)
        self.image_ids = list(image_ids)
        self.category_ids = list(category_ids)
        self._expected = range(len(ground_truth)) if expected is None else expected
        self._predicted: dict[int, Predicted | None] = {}
        self._precision: np.ndarray | None = None

    def add(self, image: int, prediction: Mapping[str, Tensor]) -> None:
        """Count one image.

        Args:
            image: its number.
            prediction: boxes, float [k, 4] xyxy in px of the image as it is stored, upright;
                scores, float [k]; labels, int64 [k].

        Raises:
            InputError: the image was counted before; a value is not finite, or a box ends before
                it begins.
        """
        parts = (prediction[key].detach().cpu().numpy() for key in ("boxes", "scores", "labels"))
        boxes, scores, labels = parts
        boxes = boxes.reshape(-1, 4).astype(np.float32)
        ordered = (boxes[:, 2:] >= boxes[:, :2]).all()
        if not (ordered and np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise InputError(
                f"image {self._name(image)}: a predicted box or score is not finite, or a box ends "
                "before it begins; the network has diverged, train it with a lower learning rate"
            )
        self._count(image, (boxes, scores.astype(np.float32), labels))

    def leave_out(self, image: int) -> None:
        """An image that cannot be read: neither its objects nor its detections count."""
        self._count(image, None)

    def _count(self, image: int, predicted: Predicted | None) -> None:
        if image in self._predicted:
            raise self._fault([image], "evaluated twice")
        self._predicted[image], self._precision = predicted, None

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
        self._predicted, self._precision = dict(sorted(gathered.items())), None
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

    def metrics(self) -> dict[str, float]:
        """COCO's averages over the classes that have objects.

        Returns:
            `ap`: over `THRESHOLDS`; `ap50` and `ap75`: at .5 and .75; `ap_small`, `ap_medium`,
            `ap_large`: `ap` of objects of that size; `images`. What has no object is left out.
        """
        precision = self._evaluated()  # [thresholds, recalls, classes, areas]
        # The last axis is `AREAS`, of which 0 is all; the first `THRESHOLDS`: 0 is .5, 5 is .75.
        parts = {"ap": precision[..., 0], "ap50": precision[:1, ..., 0]}
        parts |= {"ap75": precision[5:6, ..., 0]}
        parts |= {f"ap_{name}": precision[..., i] for i, name in enumerate(AREAS) if i}
        averages = {key: _mean(part) for key, part in parts.items()}
        averages |= {"images": float(len(self.images))}
        return {key: value for key, value in averages.items() if value is not None}

    def by_class(self) -> list[dict[str, Any]]:
        """By class number: `class`, its name; `objects`, how many there are, without crowds; `ap`
        and `ap50`, None where there is no object."""
        precision, objects = self._evaluated(), self._objects().sum(0)
        return [
            {
                "class": name,
                "objects": int(objects[label]),
                "ap": _mean(precision[:, :, label, 0]),
                "ap50": _mean(precision[:1, :, label, 0]),
            }
            for label, name in enumerate(self.class_names)
        ]

    def _evaluated(self) -> np.ndarray:
        """float64 [thresholds, recalls, classes, areas], -1 where there is no object."""
        if self._precision is None:
            images = [(i, self.ground_truth[i], predicted) for i, predicted in self._counted()]
            self._precision = evaluate(images, len(self.class_names))
        return self._precision

    def _objects(self) -> np.ndarray:
        """int32 [n, classes]: objects of each image, without crowds."""
        rows = [
            np.bincount(boxes.labels[~boxes.crowd], minlength=len(self.class_names))
            for boxes in (self.ground_truth[image] for image in self.images)
        ]
        return np.array(rows, np.int32).reshape(-1, len(self.class_names))

    def matches(self) -> dict[str, np.ndarray]:
        """What `bootstrap` reads, over n images and d detections of the m classes.

        Returns:
            image: int32 [d], place in `images`, ascending. label: int32 [d]. score: float32 [d].
            match: int8 [d, thresholds], 1 for a hit, 0 for a miss, -1 for a crowd's, which does not
            count. objects: int32 [n, m], without crowds.
        """
        columns = []
        for place, (number, predicted) in enumerate(self._counted()):
            # Place, not number: images that cannot be read have left gaps between the numbers.
            for label, scores, match in matches(self.ground_truth[number], predicted):
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
            "objects": self._objects(),
        }

    def save(self, path: Path) -> None:
        """Write the detections as COCO results: a list of image_id, category_id, bbox (x, y, width,
        height in px) and score, with the ids of the annotations. Classes that these do not know are
        left out.

        Raises:
            InputError: it cannot be written.
        """
        results = [
            {
                "image_id": self.image_ids[image],
                "category_id": self.category_ids[label],
                "bbox": box,
                "score": score,
            }
            for image, (boxes, scores, labels) in self._counted()
            for box, score, label in zip(xywh(boxes), scores.tolist(), labels.tolist(), strict=True)
            if self.category_ids[label] >= 0
        ]
        write_atomically(path, json.dumps(results, allow_nan=False))

    def load(self, path: Path) -> None:
        """Count what `save` wrote; an image without a line has no detection.

        Raises:
            InputError: the file is missing, damaged or of other images or classes; images were
                counted before.
        """
        numbers = {image_id: image for image, image_id in enumerate(self.image_ids)}
        classes = {x: label for label, x in enumerate(self.category_ids) if x >= 0}
        rows: dict[int, list[tuple[list[float], float, int]]] = {i: [] for i in self._expected}
        for i, result in enumerate(_read(path)):
            try:
                image, label = numbers[result["image_id"]], classes[result["category_id"]]
                x, y, width, height = map(float, result["bbox"])
                if not (width >= 0 and height >= 0):
                    raise ValueError("bbox is no box")
                rows[image].append(([x, y, x + width, y + height], float(result["score"]), label))
            except (LookupError, TypeError, ValueError, OverflowError) as error:
                reason = one_line(error)
                raise InputError(
                    f"{path}: result {i} is not of these images and classes or lacks a field "
                    f"({type(error).__name__}: {reason}); give the predictions of this data"
                ) from error
        for image, predicted in rows.items():
            boxes, scores, labels = zip(*predicted, strict=True) if predicted else ((), (), ())
            of_image = np.array(boxes, np.float32).reshape(-1, 4)
            self._count(image, (of_image, np.array(scores, np.float32), np.array(labels, np.int64)))


def _read(path: Path) -> list[Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read ({one_line(error)}); write the predictions again"
        ) from error
    if not isinstance(results, list):
        raise InputError(f"{path} is not a list of COCO results; write the predictions again")
    return results


def _mean(precision: np.ndarray) -> float | None:
    """Over what is known: -1 stands where a class has no object, which is no precision of 0."""
    known = precision[precision > -1]
    return float(known.mean()) if len(known) else None
