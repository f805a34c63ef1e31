"""Keypoints of COCO's json: names, lines and pairs of the categories, and the points of each
annotation.

Keypoints name pixels, so half a pixel is added to their x and y (as detectron2
`detection_utils.transform_instance_annotations` and `coco.py` do); what is written for COCO's
evaluation takes it off again.

All categories that have keypoints have the same; an object of one without has none labeled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from downstream.dense.coco_json import Entries
from downstream.dense.shapes import LARGEST
from downstream.dense.texts import require_name, require_unique, shown
from downstream.detection.data.keypoints import (
    Keypoints,
    find_pairs,
    read_skeleton,
    require_visibilities,
)
from ssld.common.errors import InputError


def read_keypoints(
    path: str, content: dict[str, Any], where: Callable[[int], str]
) -> tuple[Keypoints | None, np.ndarray | None, list[str]]:
    """What they are, the points of each annotation, float64 [m, k, 3], and what the report should
    say; None where no category has any.

    Args:
        content: of the file.
        where: how to name annotation j.

    Raises:
        InputError: values of another type, numbers that are not 3 for each keypoint, pairs that are
            none, two categories with other keypoints.
    """
    annotations = content["annotations"]
    keypoints, remarks = _keypoints(path, content)
    if keypoints is None:
        nameless = sum(bool(entry.get("keypoints")) for entry in annotations)
        if nameless:
            remarks.append(
                f"keypoints of {nameless} annotations are not read, as no category has "
                "'keypoints', the list of their names"
            )
        return None, None, remarks
    points = _points(annotations, len(keypoints.names), where)
    counted = (points[..., 2] > 0).sum(1)
    wrong = sum(
        type(stated := entry.get("num_keypoints")) is int and stated != count
        for entry, count in zip(annotations, counted.tolist(), strict=True)
    )
    if wrong:
        remarks.append(
            f"annotations whose num_keypoints is not how many have a visibility above 0: {wrong}"
        )
    return keypoints, points, remarks


def _points(annotations: Entries, count: int, where: Callable[[int], str]) -> np.ndarray:
    values = np.zeros((len(annotations), 3 * count))
    for j, entry in enumerate(annotations):
        row = entry.get("keypoints")
        if row is None or row == []:
            continue
        if not isinstance(row, list) or len(row) != 3 * count:
            what = f"{len(row)} entries" if isinstance(row, list) else shown(row)
            raise InputError(
                f"{where(j)}: keypoints has {what}; give x, y, visibility of each of {count}"
            )
        for i, x in enumerate(row):
            if type(x) not in (int, float) or not abs(x) < LARGEST:
                raise InputError(f"{where(j)}: keypoints[{i}] is {shown(x)}; give a number")
        values[j] = row
    points = values.reshape(-1, count, 3)
    require_visibilities(points[..., 2], where)
    points[..., :2] += 0.5  # from a pixel's number to its centre
    return points


def _keypoints(path: str, content: dict[str, Any]) -> tuple[Keypoints | None, list[str]]:
    having = [entry for entry in content["categories"] if entry.get("keypoints")]
    if not having:
        return None, []
    names = _names(path, having)
    info = content.get("info")
    places = [(f"{path}: category {entry['id']}", entry) for entry in having]
    places += [(f"{path}: info", info)] * isinstance(info, dict) + [(f"{path}: file", content)]
    pairs, remarks = find_pairs(names, places)
    skeletons = [entry["skeleton"] for entry in having if entry.get("skeleton")]
    skeleton, more = read_skeleton(names, skeletons[0] if skeletons else None)
    return Keypoints(tuple(names), pairs, skeleton), remarks + more


def _names(path: str, categories: Entries) -> list[str]:
    """Of all categories that have any."""
    lists: list[list[str]] = []
    for entry in categories:
        names, where = entry["keypoints"], f"{path}: keypoints of category {entry['id']}"
        if not isinstance(names, list):
            raise InputError(f"{where} is {shown(names)}; give the list of their names")
        lists.append([require_name(x, f"{where}: entry {i}") for i, x in enumerate(names)])
        require_unique(lists[-1], lambda i, where=where: f"{where}: entry {i}")
    if any(other != lists[0] for other in lists):
        raise InputError(
            f"{path}: two categories have other 'keypoints'; give them the same list, or one file "
            "each"
        )
    return lists[0]
