"""Detections as a file of COCO results (cocodataset.org, "Results format"): a list of

image_id, category_id   ids of the annotations
bbox                    x, y, width, height in px
score
keypoints               x, y, score of each, where x and y number pixels, half a px off ours
segmentation            COCO's compressed run lengths

pycocotools' `loadRes` reads it. As `bbox` is there, it takes sizes of detections from that, so that
its AP by size of keypoints and masks is not quite COCO's, whose results lack it; all else is equal.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from downstream.dense.outlines import Rle, read_outline
from downstream.detection.coco_protocol import Predicted, Similarity, xywh
from downstream.detection.oks import pixel_numbers
from ssld.common.errors import InputError, one_line
from ssld.common.files import write_atomically


def write(path: Path, found: Iterable[tuple[int, Predicted]], category_ids: Sequence[int]) -> None:
    """Write detections, by the ids of their images.

    Args:
        category_ids: by class number; below 0 for a class whose detections are left out.

    Raises:
        InputError: it cannot be written.
    """
    results = [
        {"image_id": image_id, "category_id": category_ids[label], **result}
        for image_id, predicted in found
        for label, result in zip(predicted.labels.tolist(), _results(predicted), strict=True)
        if category_ids[label] >= 0
    ]
    write_atomically(path, json.dumps(results, allow_nan=False))


def _results(predicted: Predicted) -> list[dict[str, Any]]:
    fields = zip(xywh(predicted.boxes), predicted.scores.tolist(), strict=True)
    results: list[dict[str, Any]] = [{"bbox": box, "score": score} for box, score in fields]
    for i, result in enumerate(results):
        if predicted.keypoints is not None:
            result["keypoints"] = pixel_numbers(predicted.keypoints[i]).ravel().tolist()
        if predicted.masks is not None:
            runs = predicted.masks[i]
            result["segmentation"] = {**runs, "counts": runs["counts"].decode("ascii")}
    return results


def read(
    path: Path,
    numbers: Mapping[int, int],
    labels: Mapping[int, int],
    similarity: Similarity,
) -> Mapping[int, Predicted]:
    """Read what `write` wrote.

    Args:
        numbers: of the images, by id.
        labels: class numbers, by id.
        similarity: says what else than boxes must be there.

    Returns:
        by the numbers of images; without detections where there are none.

    Raises:
        InputError: the file is missing, damaged or of other images or classes.
    """
    rows: defaultdict[int, list[tuple[Any, ...]]] = defaultdict(list)
    for i, result in enumerate(_list(path)):
        try:
            image, label = numbers[result["image_id"]], labels[result["category_id"]]
            x, y, width, height = map(float, result["bbox"])
            if not (width >= 0 and height >= 0):
                raise ValueError("bbox is no box")
            box, score = [x, y, x + width, y + height], float(result["score"])
            rows[image].append((box, score, label, _further(result, similarity)))
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            reason = one_line(error)
            raise InputError(
                f"{path}: result {i} is not of these images and classes or lacks a field "
                f"({type(error).__name__}: {reason}); give the predictions of this data"
            ) from error
    return {image: _predicted(rows[image], similarity) for image in numbers.values()}


def _further(result: Mapping[str, Any], similarity: Similarity) -> Any:
    """Keypoints, float64 [k, 3] in continuous px, or run lengths."""
    if similarity.of == "keypoints":
        points = np.array(result["keypoints"], np.float64)
        if points.shape != (3 * len(similarity.sigmas),) or not np.isfinite(points).all():
            raise ValueError(f"keypoints is not x, y, score of each of {len(similarity.sigmas)}")
        return points.reshape(-1, 3) + (0.5, 0.5, 0.0)
    return _runs(result["segmentation"]) if similarity.of == "masks" else None


def _runs(value: Any) -> Rle:
    runs = read_outline(value)
    if not isinstance(runs, dict):
        raise ValueError("segmentation is no run lengths")
    return runs


def _predicted(rows: Sequence[tuple[Any, ...]], similarity: Similarity) -> Predicted:
    boxes, scores, labels, further = zip(*rows, strict=True) if rows else ((), (), (), ())
    shape = (-1, len(similarity.sigmas), 3)
    return Predicted(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(labels, np.int64),
        np.array(further, np.float32).reshape(shape) if similarity.of == "keypoints" else None,
        list(further) if similarity.of == "masks" else None,
    )


def _list(path: Path) -> list[Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read ({one_line(error)}); write the predictions again"
        ) from error
    if not isinstance(results, list):
        raise InputError(f"{path} is not a list of COCO results; write the predictions again")
    return results
