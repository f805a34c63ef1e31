"""COCO's json of boxes and keypoints (cocodataset.org, "Data format").

`bbox` is x, y, width, height in px from the image's upper left corner, continuous. Category ids
have gaps (COCO's 80 run to 90) and may begin at 0 or 1: class numbers count them in ascending order
and the report says which is which. Keypoints name pixels, so half a pixel is added to their x and y
(as detectron2 `detection_utils.transform_instance_annotations` and `coco.py` do); what is written
for COCO's evaluation takes it off again.

Two mistakes give about 0 mAP and no message elsewhere, so they are errors here: corners (x1, y1,
x2, y2) in `bbox`, and shares of the image's size.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from downstream.data.annotations import (
    UNSTATED,
    Annotations,
    flip_pairs,
    missing_from,
    require_finite,
    require_unique,
)
from ssld.errors import InputError

BBOX = ("bbox[0] (x)", "bbox[1] (y)", "bbox[2] (width)", "bbox[3] (height)")
PREFIXES = ("instances_", "person_keypoints_")
"""Of the official files: instances_train2017.json describes train2017/."""
MANY = 10
"""Boxes that reach over the edge before the whole file is suspected."""

Entries = list[dict[str, Any]]


def read_coco(path: str, folder: str | None = None) -> Annotations:
    """Read `path`; its images lie in `folder`, by default where `_candidates` finds them.

    Raises:
        InputError: not COCO, ids that nothing has or that occur twice, missing images, boxes that
            are not four finite numbers, corners or shares where sizes in px belong.
    """
    images, annotations, categories = _load(path)
    names, image_ids = _names(path, images), _ids(path, "images", images)
    category_ids = _ids(path, "categories", categories)
    categories = [categories[k] for k in np.argsort(category_ids)]
    category_ids = sorted(category_ids)
    class_names = [str(value) for value in _column(path, "categories", categories, "name")]
    require_unique(class_names, lambda i: f"{path}: the name of category {category_ids[i]}")

    def place(j: int) -> str:
        return f"annotations[{j}] (id {annotations[j].get('id')})"

    image = _numbers(path, annotations, "image_id", image_ids, place, "image")

    def where(j: int) -> str:
        return f"{path}: {place(j)} of image {names[image[j]]!r}"

    labels = _numbers(path, annotations, "category_id", category_ids, place, "category")
    bbox = _boxes(path, annotations, where)
    stated = _stated(images)
    _suspect(path, bbox, stated[image])
    keypoints, pairs = _keypoints(path, annotations, categories, where)
    return Annotations(
        path=path,
        format="COCO",
        folder=_find_images(path, names, folder),
        names=names,
        stated=stated,
        image_ids=image_ids,
        class_names=class_names,
        category_ids=category_ids,
        image=image,
        labels=labels,
        xyxy=np.concatenate([bbox[:, :2], bbox[:, :2] + bbox[:, 2:]], axis=1),
        crowd=np.array([bool(entry.get("iscrowd")) for entry in annotations], bool),
        places=place,
        files=[path],
        areas=np.array([_area(entry.get("area")) for entry in annotations], np.float64),
        keypoints=keypoints,
        flip_pairs=pairs,
    )


def _load(path: str) -> tuple[Entries, Entries, Entries]:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file, object_hook=_without_outline)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as json ({error})") from error
    keys = ("images", "annotations", "categories")
    for key in keys:
        value = content.get(key) if isinstance(content, dict) else None
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise InputError(
                f"{path}: has no list of objects {key!r}; COCO's format has {', '.join(keys)}"
            )
    if not content["images"]:
        raise InputError(f"{path}: the list 'images' is empty; give a file that has images")
    return content["images"], content["annotations"], content["categories"]


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    """Outlines are most of the file, and would be gigabytes in memory."""
    entry.pop("segmentation", None)
    return entry


def _column(path: str, part: str, entries: Entries, key: str) -> list[Any]:
    try:
        return [entry[key] for entry in entries]
    except KeyError:
        i = next(i for i, entry in enumerate(entries) if key not in entry)
        raise InputError(f"{path}: {part}[{i}] has no {key!r}; COCO's format needs it") from None


def _ids(path: str, part: str, entries: Entries) -> list[int]:
    values = _column(path, part, entries, "id")
    for i, value in enumerate(values):
        if not isinstance(value, int) or isinstance(value, bool):
            raise InputError(f"{path}: {part}[{i}].id is {value!r}; give an integer")
    require_unique(values, lambda i: f"{path}: {part}[{i}].id")
    return values


def _names(path: str, images: Entries) -> list[str]:
    names = []
    for i, value in enumerate(_column(path, "images", images, "file_name")):
        if not isinstance(value, str) or not value or os.path.isabs(value):
            raise InputError(
                f"{path}: images[{i}].file_name is {value!r}; give a name relative to the images' "
                "folder"
            )
        names.append(Path(value).as_posix())
    require_unique(names, lambda i: f"{path}: images[{i}].file_name")
    return names


def _numbers(
    path: str,
    annotations: Entries,
    key: str,
    ids: Sequence[int],
    place: Callable[[int], str],
    what: str,
) -> np.ndarray:
    """Ids of images or categories -> their indices, int64 [m]."""
    index = {value: i for i, value in enumerate(ids)}
    values = _column(path, "annotations", annotations, key)
    try:
        return np.array([index[value] for value in values], np.int64)
    except (KeyError, TypeError):
        bad = [
            j for j, value in enumerate(values) if not isinstance(value, int) or value not in index
        ]
        known = ", ".join(str(value) for value in sorted(ids)[:5]) + (
            ", ..." if len(ids) > 5 else ""
        )
        more = f" (and {len(bad) - 1} more are like it)" if len(bad) > 1 else ""
        raise InputError(
            f"{path}: {place(bad[0])} has {key} {values[bad[0]]!r}, but no {what} in this file has "
            f"that id{more}; the ids are {known}"
        ) from None


def _boxes(path: str, annotations: Entries, where: Callable[[int], str]) -> np.ndarray:
    """`bbox` of all, float64 [m, 4]."""
    values = _column(path, "annotations", annotations, "bbox")
    try:
        boxes = np.array(values, np.float64)
        sound = len(values) == 0 or (boxes.shape[1:] == (4,) and bool(np.isfinite(boxes).all()))
    except (ValueError, TypeError):
        boxes, sound = np.empty(0), False
    if not sound:  # a look at each of a million only where one is wrong
        for j, value in enumerate(values):
            numbers = isinstance(value, list) and all(isinstance(x, (int, float)) for x in value)
            if not numbers or len(value) != 4:
                raise InputError(f"{where(j)}: bbox is {value!r}; give x, y, width, height in px")
    boxes = boxes.reshape(-1, 4)
    require_finite(boxes, BBOX, where, "x, y, width, height in px")
    return boxes


def _suspect(path: str, bbox: np.ndarray, stated: np.ndarray) -> None:
    """Refuse a file whose boxes are all of another kind; `stated` is [m, 2] of each box's image."""
    known = (stated > 0).all(1) & (bbox[:, 2:] > 0).all(1)
    bbox, size = bbox[known], stated[known][:, ::-1]  # width, height
    if len(bbox) and bbox.max() <= 1 and size.min() > 2:
        raise InputError(
            f"{path}: no bbox has a number above 1, so they are shares of the image's size; COCO's "
            "are px: multiply them by width and height"
        )
    over = (bbox[:, :2] + bbox[:, 2:] > size + 1).any(1)
    corners = ((bbox[:, 2:] > bbox[:, :2]) & (bbox[:, 2:] <= size + 1)).all(1)
    if over.sum() >= MANY and over.mean() > 0.05 and corners.mean() > 0.99:
        raise InputError(
            f"{path}: {over.sum()} of {len(bbox)} boxes reach over the image's edge if bbox is x, "
            "y, width, height, and none if it is x1, y1, x2, y2; COCO's is the former: convert it"
        )


def _stated(images: Entries) -> np.ndarray:
    sizes = [(entry.get("height"), entry.get("width")) for entry in images]
    known = [all(isinstance(x, (int, float)) and x > 0 for x in size) for size in sizes]
    return np.array(
        [size if ok else (UNSTATED, UNSTATED) for size, ok in zip(sizes, known, strict=True)]
    ).astype(np.int64)


def _area(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and value > 0 else np.nan


def _keypoints(
    path: str, annotations: Entries, categories: Entries, where: Callable[[int], str]
) -> tuple[np.ndarray | None, tuple[tuple[int, int], ...]]:
    """float64 [m, k, 3] and the pairs that a flip swaps; None where no category has keypoints."""
    names = [list(entry["keypoints"]) for entry in categories if entry.get("keypoints")]
    if not names:
        return None, ()
    if any(other != names[0] for other in names):
        raise InputError(
            f"{path}: two categories have other 'keypoints'; give them the same list, or one file "
            "each"
        )
    count = len(names[0])
    values = np.zeros((len(annotations), 3 * count))
    for j, entry in enumerate(annotations):
        row = entry.get("keypoints")
        if not row:
            continue
        if len(row) != 3 * count or not all(isinstance(x, (int, float)) for x in row):
            raise InputError(
                f"{where(j)}: keypoints has {len(row)} entries; give x, y, visibility of each of "
                f"{count}"
            )
        values[j] = row
    require_finite(values, [f"keypoints[{i}]" for i in range(3 * count)], where)
    points = values.reshape(-1, count, 3)
    points[..., :2] += 0.5  # from a pixel's number to its centre
    return points, flip_pairs([str(name) for name in names[0]])


def _find_images(path: str, names: Sequence[str], folder: str | None) -> str:
    """The folder that has all `names`.

    Raises:
        InputError: none has; naming the first that the best one lacks.
    """
    candidates = [folder] if folder else _candidates(Path(path))
    candidates = [candidate for candidate in candidates if os.path.isdir(candidate)]
    if not candidates:
        raise InputError(f"{folder}: no such folder of images; check what follows ::")
    best, fewest = "", list(range(len(names) + 1))
    for candidate in candidates:
        missing = missing_from(candidate, names)
        if not missing:
            return candidate
        if len(missing) < len(fewest):
            best, fewest = candidate, missing
    others = f" and {len(fewest) - 1} more of {len(names)}" if len(fewest) > 1 else ""
    raise InputError(
        f"{path}: images[{fewest[0]}].file_name {names[fewest[0]]!r}{others} is no file in {best}; "
        f"complete the images, or name their folder as {os.path.basename(path)}::FOLDER"
    )


def _candidates(path: Path) -> list[str]:
    """Beside the file, in `images/`, in a folder with its name; for `annotations/x.json` also
    beside that folder, as COCO itself has it."""
    stem = path.stem
    for prefix in PREFIXES:
        stem = stem.removeprefix(prefix)
    roots = [path.parent]
    if path.parent.absolute().name == "annotations":
        roots.append(path.parent.absolute().parent)
    inside = ("", "images", path.stem, stem, f"images/{stem}")
    return list(dict.fromkeys(str(root / name) for root in roots for name in inside))
