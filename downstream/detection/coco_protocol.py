"""COCO's average precision of boxes, by faster-coco-eval, and the same on draws of images.

The protocol is that of COCO's own evaluation, pycocotools/cocoeval.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from downstream.detection.data.boxes import Boxes

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""Intersections over union from which on a detection is a hit."""
RECALLS = np.linspace(0.0, 1.0, 101)
"""At which precision is read off."""
MAX_DETECTIONS = 100
"""Of an image and a class, the best; the rest is left out."""
AREAS = ("all", "small", "medium", "large")
"""Of the objects: up to 32², 96² px, and above."""
CHUNK_DETECTIONS = 4_000_000
"""Detections at a time in `bootstrap`, to save memory."""

Predicted = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Boxes, float32 [k, 4] xyxy; scores, float32 [k]; labels, int64 [k]."""


def evaluate(images: list[tuple[int, Boxes, Predicted]], num_classes: int) -> np.ndarray:
    """Precision as faster-coco-eval has it, float64 [thresholds, recalls, classes, areas]."""
    # An optional package, which comparing runs (`bootstrap`) does without.
    from faster_coco_eval import COCO, COCOeval_faster

    ground_truth: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    for number, boxes, (predicted, scores, labels) in images:
        fields = (xywh(boxes.xyxy), boxes.labels, boxes.crowd, boxes.areas)
        for box, label, crowd, area in zip(*fields, strict=True):
            facts = {"bbox": box, "iscrowd": int(crowd), "area": float(area)}
            ground_truth.append({**facts, "image_id": number, "category_id": int(label)})
        for box, score, label in zip(xywh(predicted), scores, labels, strict=True):
            facts = {"bbox": box, "score": float(score), "area": box[2] * box[3], "iscrowd": 0}
            predictions.append({**facts, "image_id": number, "category_id": int(label)})
    shape = (len(THRESHOLDS), len(RECALLS), num_classes, len(AREAS))
    if not ground_truth:
        return np.full(shape, -1.0)
    shared = {
        "images": [{"id": number} for number, _, _ in images],
        "categories": [{"id": label} for label in range(num_classes)],
    }
    both = []
    for boxes in (ground_truth, predictions):
        for i, box in enumerate(boxes):
            box["id"] = 1 + i  # 0 would mean that nothing matched
        both.append(COCO({**shared, "annotations": boxes}))
    evaluator = COCOeval_faster(both[0], both[1], "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator.eval["precision"].reshape(*shape, -1)[..., -1]  # of up to 1, 10, 100


def xywh(boxes: np.ndarray) -> list[list[float]]:
    """In float64, where sum and difference of two float32 of an image's size are exact."""
    corners = boxes.astype(np.float64)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).tolist()


def matches(
    ground_truth: Boxes, predicted: Predicted
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Class, scores and matches of each class that is predicted, best first."""
    from faster_coco_eval import mask

    boxes, scores, labels = predicted
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        best = own[np.argsort(-scores[own], kind="stable")[:MAX_DETECTIONS]]
        there = np.flatnonzero(ground_truth.labels == label)
        crowd = ground_truth.crowd[there]
        match = np.zeros((len(best), len(THRESHOLDS)), np.int8)
        if len(there):
            overlap = mask.iou(xywh(boxes[best]), xywh(ground_truth.xyxy[there]), crowd.tolist())
            match = _assign(np.asarray(overlap), crowd)
        yield int(label), scores[best], match


def _assign(overlap: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Which detections hit, by pycocotools' evaluateImg: the best first, each takes the object that
    it overlaps most of those that are left, the last of equals; one that has none may lie in a
    crowd, which takes any number.

    Args:
        overlap: float64 [d, g]: intersection over union, with a crowd over the detection's area.
        crowd: bool [g].

    Returns:
        int8 [d, thresholds]: 1 for a hit, 0 for a miss, -1 for a crowd's.
    """
    # A crowd is the last resort of a detection and never used up, so it is settled before the loop.
    in_crowd = overlap[:, crowd].max(1, initial=0.0)[:, None] >= THRESHOLDS  # [d, thresholds]
    match = -in_crowd.astype(np.int8)
    objects = overlap[:, ~crowd]
    left = np.ones((len(THRESHOLDS), objects.shape[1]), bool)
    for i in np.flatnonzero(objects.max(1, initial=0.0) >= THRESHOLDS[0]):
        within = np.where(left, objects[i], -1.0)  # [thresholds, objects], -1 where it is taken
        # argmax is the first of equals, pycocotools' loop keeps the last: so from the right.
        taken = within.shape[1] - 1 - within[:, ::-1].argmax(1)
        hits = np.flatnonzero(within.max(1) >= THRESHOLDS)  # of the thresholds; each matches apart
        left[hits, taken[hits]] = False
        match[i, hits] = 1
    return match


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
