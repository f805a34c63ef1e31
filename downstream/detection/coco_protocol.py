"""COCO's average precision of boxes, keypoints and masks, by faster-coco-eval, and the same on
draws of images.

The protocol is that of COCO's own evaluation, pycocotools/cocoeval.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from downstream.dense.outlines import Rle
from downstream.detection.data.boxes import Boxes
from downstream.detection.data.keypoints import Keypoints
from downstream.detection.networks import PREFIXES
from downstream.detection.oks import oks, pixel_numbers, sigmas_of

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""Similarities from which on a detection is a hit."""
RECALLS = np.linspace(0.0, 1.0, 101)
"""At which precision is read off."""
CHUNK_DETECTIONS = 4_000_000
"""Detections at a time in `bootstrap`, to save memory."""


@dataclass(frozen=True)
class Predicted:
    """What was found in one image, in px of the upright image, continuous."""

    boxes: np.ndarray
    """float32 [k, 4] xyxy."""
    scores: np.ndarray
    """float32 [k]."""
    labels: np.ndarray
    """int64 [k]."""
    keypoints: np.ndarray | None = None
    """float32 [k, K, 3]: x, y, score."""
    masks: list[Rle] | None = None
    """k of the image's size."""


@dataclass(frozen=True)
class Similarity:
    """By what a detection is compared with an object: intersection over union of their boxes or
    masks, or similarity of their keypoints."""

    of: Literal["boxes", "keypoints", "masks"] = "boxes"
    sigmas: tuple[float, ...] = ()
    """Of keypoints, see `oks.py`."""

    @property
    def prefix(self) -> str:
        """Of the metrics' keys."""
        return PREFIXES[self.of]

    @property
    def max_detections(self) -> int:
        """Of an image and a class, the best; the rest is left out."""
        return 20 if self.of == "keypoints" else 100

    @property
    def areas(self) -> tuple[str, ...]:
        """Of the objects: up to 32², 96² px, and above. COCO labels no keypoints in small ones."""
        sizes = ("all", "small", "medium", "large")
        return tuple(size for size in sizes if self.of != "keypoints" or size != "small")

    def ignored(self, objects: Boxes) -> np.ndarray:
        """bool [n]: which objects are neither to be found nor wrong to find: crowds, and what has
        no labeled keypoint where keypoints are compared."""
        if self.of != "keypoints":
            return objects.crowd
        return objects.crowd | ~(keypoints_of(objects)[..., 2] > 0).any(1)

    def between(
        self, predicted: Predicted, own: np.ndarray, objects: Boxes, there: np.ndarray
    ) -> np.ndarray:
        """Of chosen detections and objects, int64 [d] and [g] places -> float64 [d, g]; with a
        crowd's box or mask the intersection is over the detection's area."""
        from faster_coco_eval import mask

        boxes = xywh(objects.xyxy[there])
        if self.of == "keypoints":
            points, truth = keypoints_of(predicted)[own], keypoints_of(objects)[there]
            return oks(points, truth, boxes, objects.areas[there], self.sigmas)
        crowd = objects.crowd[there].tolist()
        if self.of == "boxes":
            return np.asarray(mask.iou(xywh(predicted.boxes[own]), boxes, crowd))
        found = [masks_of(predicted)[i] for i in own]
        return np.asarray(mask.iou(found, [masks_of(objects)[i] for i in there], crowd))


BOXES = Similarity()


def similarity_of(
    finds: Literal["boxes", "keypoints", "masks"],
    keypoints: Keypoints | None,
    oks_sigmas: float | Sequence[float] | None,
) -> Similarity:
    """By what a detector is judged that finds boxes, or keypoints or masks in them.

    Args:
        keypoints: of the held-out set.
        oks_sigmas: `test.oks_sigmas`.

    Raises:
        InputError: the sigmas are not as many as the keypoints.
    """
    if finds != "keypoints" or keypoints is None:
        return Similarity(finds)
    return Similarity("keypoints", sigmas_of(keypoints.names, oks_sigmas))


def keypoints_of(of: Boxes | Predicted) -> np.ndarray:
    """float32 [n, K, 3] of those that have some."""
    assert of.keypoints is not None
    return of.keypoints


def masks_of(of: Boxes | Predicted) -> list[Rle]:
    """n of those that have some."""
    assert of.masks is not None
    return of.masks


def evaluate(
    images: list[tuple[int, Boxes, Predicted]], num_classes: int, similarity: Similarity = BOXES
) -> np.ndarray:
    """Precision as faster-coco-eval has it, float64 [thresholds, recalls, classes, areas]."""
    # An optional package, which comparing runs (`bootstrap`) does without.
    from faster_coco_eval import COCO, COCOeval_faster

    ground_truth: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    for number, objects, predicted in images:
        shared = {"image_id": number}
        ground_truth += [{**x, **shared} for x in _objects(objects, similarity)]
        predictions += [{**x, **shared} for x in _detections(predicted, similarity)]
    shape = (len(THRESHOLDS), len(RECALLS), num_classes, len(similarity.areas))
    if not ground_truth:
        return np.full(shape, -1.0)
    # The size is asked for, but stands in the run lengths.
    facts = {
        "images": [{"id": number, "height": 0, "width": 0} for number, _, _ in images],
        "categories": [{"id": label} for label in range(num_classes)],
    }
    both = []
    for rows in (ground_truth, predictions):
        for i, row in enumerate(rows):
            row["id"] = 1 + i  # 0 would mean that nothing matched
        both.append(COCO({**facts, "annotations": rows}))
    kind: Any = {"boxes": "bbox", "keypoints": "keypoints", "masks": "segm"}[similarity.of]
    evaluator = COCOeval_faster(
        both[0], both[1], kind, kpt_oks_sigmas=list(similarity.sigmas) or None
    )
    evaluator.params.catIds = list(range(num_classes))  # of keypoints else those with objects alone
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator.eval["precision"].reshape(*shape, -1)[..., -1]  # of up to 1, 10, 100


def _objects(objects: Boxes, similarity: Similarity) -> Iterator[dict[str, Any]]:
    fields = (xywh(objects.xyxy), objects.labels, objects.crowd, objects.areas)
    for i, (box, label, crowd, area) in enumerate(zip(*fields, strict=True)):
        row = {"bbox": box, "category_id": int(label), "iscrowd": int(crowd), "area": float(area)}
        if similarity.of == "keypoints":
            points = keypoints_of(objects)[i]
            row["keypoints"] = pixel_numbers(points).ravel().tolist()
            row["num_keypoints"] = int((points[:, 2] > 0).sum())
        elif similarity.of == "masks":
            row["segmentation"] = masks_of(objects)[i]
        yield row


def _detections(predicted: Predicted, similarity: Similarity) -> Iterator[dict[str, Any]]:
    """With the areas that pycocotools' `loadRes` gives to results of the kind."""
    from faster_coco_eval import mask

    fields = (xywh(predicted.boxes), predicted.scores, predicted.labels)
    for i, (box, score, label) in enumerate(zip(*fields, strict=True)):
        row = {"bbox": box, "category_id": int(label), "iscrowd": 0, "score": float(score)}
        row["area"] = box[2] * box[3]
        if similarity.of == "keypoints":
            points = pixel_numbers(keypoints_of(predicted)[i])
            row["keypoints"] = points.ravel().tolist()
            row["area"] = float(np.ptp(points[:, :2], axis=0).prod())
        elif similarity.of == "masks":
            row["segmentation"] = masks_of(predicted)[i]
            row["area"] = float(mask.area(masks_of(predicted)[i]))
        yield row


def xywh(boxes: np.ndarray) -> list[list[float]]:
    """In float64, where sum and difference of two float32 of an image's size are exact."""
    corners = boxes.astype(np.float64)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).tolist()


def matches(
    objects: Boxes, predicted: Predicted, similarity: Similarity = BOXES
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Class, scores and matches of each class that is predicted, best first."""
    ignored = similarity.ignored(objects)
    for label, own, there, taken in pairs(objects, predicted, similarity):
        match = (taken >= 0).astype(np.int8)
        match[(taken >= 0) & np.append(ignored[there], False)[taken]] = -1
        yield label, predicted.scores[own], match


def pairs(
    objects: Boxes, predicted: Predicted, similarity: Similarity = BOXES
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Of each class that is predicted: its number; places of its detections, int64 [d], best first;
    of its objects, int64 [g]; which of these each detection took, see `_assign`."""
    ignored = similarity.ignored(objects)
    for label in np.unique(predicted.labels):
        own = np.flatnonzero(predicted.labels == label)
        own = own[np.argsort(-predicted.scores[own], kind="stable")[: similarity.max_detections]]
        there = np.flatnonzero(objects.labels == label)
        taken = np.full((len(own), len(THRESHOLDS)), -1)
        if len(there):
            near = similarity.between(predicted, own, objects, there)
            taken = _assign(near, ignored[there], objects.crowd[there])
        yield int(label), own, there, taken


def _assign(near: np.ndarray, ignored: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Which object each detection takes, by pycocotools' evaluateImg: the best first, each takes
    the object that is the most similar of those that are left, the last of equals; one that has
    none may take an ignored one. A crowd is never used up.

    Args:
        near: float64 [d, g], similarities.
        ignored, crowd: bool [g]; all crowds are ignored.

    Returns:
        int64 [d, thresholds]: an object's place, -1 for none.
    """
    taken = np.full((len(near), len(THRESHOLDS)), -1)
    left = np.ones((len(THRESHOLDS), len(crowd)), bool)
    for i in np.flatnonzero(near.max(1) >= THRESHOLDS[0]):
        for among in (ignored, ~ignored):  # what is taken of the second overrules the first
            within = np.where((left | crowd) & among, near[i], -1.0)  # [thresholds, g]
            # argmax is the first of equals, pycocotools' loop keeps the last: so from the right.
            last = len(crowd) - 1 - within[:, ::-1].argmax(1)
            hit = within.max(1) >= THRESHOLDS
            taken[i, hit] = last[hit]
        hits = np.flatnonzero(taken[i] >= 0)  # of the thresholds; each matches apart
        left[hits, taken[i, hits]] = False
    return taken


def bootstrap(matches: Mapping[str, np.ndarray], draws: np.ndarray) -> np.ndarray:
    """COCO's `ap` on draws of images: on each image once it is that of `Detections.metrics`.

    An image that is drawn twice counts as two. Detections of equal scores are in the order of the
    images' numbers, whatever the order of the draw.

    Args:
        matches: of `Detections.matches`; other keys are left alone.
        draws: int64 [r, k]: places in `Detections.images`.

    Returns:
        float64 [r], NaN for a draw without an object.
    """
    rows = max(1, CHUNK_DETECTIONS // max(1, len(matches["image"]), len(matches["objects"])))
    parts = [_drawn(matches, draws[i : i + rows]) for i in range(0, len(draws), rows)]
    return np.concatenate([np.zeros(0), *parts])


def how_often(draws: np.ndarray, images: int) -> np.ndarray:
    """Draws of images, int64 [r, k] -> how often each is in each, int64 [r, images]."""
    rows = np.arange(len(draws))[:, None] * images
    return np.bincount((draws + rows).ravel(), minlength=len(draws) * images).reshape(-1, images)


def _drawn(matches: Mapping[str, np.ndarray], draws: np.ndarray) -> np.ndarray:
    objects = matches["objects"].astype(np.float64)  # [n, classes]
    times = how_often(draws, len(objects))  # [r, n]
    in_draw = times.astype(np.float64) @ objects  # [r, classes], whole numbers
    total = np.zeros(len(draws))
    # All draws of a class at once: its detections are sorted once, a draw only weighs them anew.
    for label in np.flatnonzero(in_draw.any(0)):
        own = np.flatnonzero(matches["label"] == label)
        own = own[np.argsort(-matches["score"][own], kind="stable")]
        weight = times[:, matches["image"][own]]  # [r, d], best first
        needed = _hits_needed(in_draw[:, label])
        total += np.where(
            in_draw[:, label] > 0, _of_class(weight, matches["match"][own], needed), 0
        )
    classes = (in_draw > 0).sum(1)
    return np.divide(total, classes, out=np.full(len(draws), np.nan), where=classes > 0)


def _hits_needed(objects: np.ndarray) -> np.ndarray:
    """Number of objects, float64 [r] -> the fewest hits whose share of them is at each of
    `RECALLS`, in floating point as pycocotools' searchsorted has it, int64 [r, recalls]."""
    # The quotient hits / objects is compared as floats, so it decides, not RECALLS * objects: one
    # below the rounded product, and up where that is not enough.
    whole = np.maximum(objects, 1.0)[:, None]
    hits = np.maximum(np.round(RECALLS * whole) - 1, 0)
    for _ in range(2):
        hits += hits / whole < RECALLS
    return hits.astype(np.int64)


def _of_class(weight: np.ndarray, match: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """AP of one class. Only hits are looked at: precision falls between them, recall does not rise.

    Args:
        weight: int64 [r, d]: how often each detection is in each draw, best detection first.
        match: int8 [d, thresholds].
        needed: int64 [r, recalls], of `_hits_needed`.

    Returns:
        float64 [r].
    """
    rows, total = np.arange(len(weight))[:, None], np.zeros(len(weight))
    all_so_far = weight.cumsum(1)
    for column in match.T:
        at = np.flatnonzero(column == 1)
        if not len(at):
            continue
        so_far, crowds = all_so_far[:, at], np.flatnonzero(column == -1)
        if len(crowds):  # what lies in a crowd counts as neither hit nor miss
            left_out = np.pad(weight[:, crowds].cumsum(1), ((0, 0), (1, 0)))
            so_far = so_far - left_out[:, np.searchsorted(crowds, at)]
        hits = weight[:, at].cumsum(1)  # [r, h]
        precision = hits / np.maximum(so_far, 1)
        # The envelope: at each recall the best precision at this or any higher one.
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        beyond = 1 + max(hits[:, -1].max(), needed.max())
        # searchsorted takes one sorted vector: row i is lifted above all rows before it.
        where = np.searchsorted((hits + rows * beyond).ravel(), needed + rows * beyond)
        where = where - rows * len(at)  # [r, recalls]
        reached = where < len(at)
        read_off = precision[rows, np.minimum(where, len(at) - 1)]
        total += np.where(reached, read_off, 0.0).mean(1)
    return total / match.shape[1]
