"""COCO's json of boxes, keypoints and outlines (cocodataset.org, "Data format").

`bbox` is x, y, width, height in px from the image's upper left corner, continuous. Category ids
have gaps (COCO's 80 run to 90) and may begin at 0 or 1: class numbers count them in ascending order
and the report says which is which. Keypoints are read by `coco_keypoints.py`, outlines
(`segmentation`) by `outlines.py` and only where masks are asked for.

An annotation without `bbox` has the box around its outline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, TypeGuard

import numpy as np

from downstream.dense.coco_json import (
    LISTS,
    Entries,
    column,
    file_names,
    find_images,
    ids,
    indices,
    read_content,
)
from downstream.dense.outlines import Outline, extent, read_outline
from downstream.dense.shapes import LARGEST, UNSTATED, require_finite
from downstream.dense.texts import require_name, require_unique, shown
from downstream.detection.data.annotations import Annotations
from downstream.detection.data.coco_keypoints import read_keypoints
from ssld.common.errors import InputError
from ssld.data.source import Source

BBOX = ("bbox[0] (x)", "bbox[1] (y)", "bbox[2] (width)", "bbox[3] (height)")
AROUND = "around"
"""Key of the box around an outline that has none beside it, None where it is no outline."""


def read_coco(
    path: str,
    folder: str | None = None,
    masks: bool = False,
    images_in: Source | None = None,
) -> Annotations:
    """Read `path`; its images lie in `folder`, by default where `_candidates` finds them, or are
    those of `images_in`, in that order.

    Args:
        masks: keep all outlines.

    Raises:
        InputError: not COCO, values of another type, ids that nothing has or that occur twice,
            missing images, boxes that are not four finite numbers.
    """
    content = read_content(path, _with_outline if masks else _without_outline)
    images, annotations, categories = (content[key] for key in LISTS)
    names = file_names(f"{path}: images", images)
    image_ids = ids(f"{path}: images", images, text=True)
    require_unique(names, lambda i: f"{path}: images[{i}].file_name")
    category_ids = ids(f"{path}: categories", categories, text=True)
    categories = [categories[k] for k in _ascending(category_ids)]
    category_ids = [category_ids[k] for k in _ascending(category_ids)]
    class_names = [
        require_name(value, f"{path}: the name of category {category_ids[i]}")
        for i, value in enumerate(column(f"{path}: categories", categories, "name"))
    ]
    require_unique(class_names, lambda i: f"{path}: the name of category {category_ids[i]}")

    def place(j: int) -> str:
        return f"annotations[{j}] (id {shown(annotations[j].get('id'))})"

    image = indices(path, annotations, "image_id", image_ids, place)

    def where(j: int) -> str:
        return f"{path}: {place(j)} of image {shown(names[image[j]])}"

    labels = indices(path, annotations, "category_id", category_ids, place)
    bbox = _boxes(annotations, where)
    keypoints, points, remarks = read_keypoints(path, content, where)
    numbers, renumbered = _numbers(category_ids)
    if images_in is not None:
        place_of_all, found = images_in.path, ids_in_order(path, images_in, len(names))
    else:
        place_of_all, found = find_images(path, names, folder, lambda i: f"images[{i}].file_name")
    return Annotations(
        path=path,
        format="COCO",
        folder=place_of_all,
        names=found,
        images=images_in,
        stated=_stated(images),
        image_ids=image_ids,
        class_names=class_names,
        category_ids=numbers,
        image=np.array(image, np.int64),
        labels=np.array(labels, np.int64),
        xyxy=np.concatenate([bbox[:, :2], bbox[:, :2] + bbox[:, 2:]], axis=1),
        crowd=_crowd(annotations, where),
        places=place,
        files=[path],
        areas=np.array([_area(entry.get("area")) for entry in annotations], np.float64),
        keypoints=keypoints,
        points=points,
        outlines=_outlines(annotations, where) if masks else None,
        remarks=(*_remarks(annotations), *remarks, *renumbered),
    )


def _ascending(values: Sequence[Any]) -> list[int]:
    """Where the ids stand in ascending order: text that is a number as that number."""
    numbers = all(type(value) is int or value.isdecimal() for value in values)
    return sorted(range(len(values)), key=lambda k: int(values[k]) if numbers else values[k])


def _numbers(category_ids: Sequence[Any]) -> tuple[list[int], list[str]]:
    """The ids as numbers, which detections have, and a remark where they are others."""
    if not category_ids or type(category_ids[0]) is int:
        return list(category_ids), []
    numbers = [int(value) if value.isdecimal() else 0 for value in category_ids]
    if len(set(numbers)) == len(numbers) and all(value.isdecimal() for value in category_ids):
        return numbers, []
    count = list(range(1, len(category_ids) + 1))
    return count, ["ids of categories are text: results have the numbers from 1 on"]


def ids_in_order(path: str, images: Source, count: int) -> list[str]:
    """
    Raises:
        InputError: there are more or fewer than `count`.
    """
    if len(images) != count:
        raise InputError(f"{path}: has {count} images, but {images.path} has {len(images)}")
    return [images.sample_id(i) for i in range(count)]


def _remarks(annotations: Entries) -> tuple[str, ...]:
    outlines = sum(AROUND in entry for entry in annotations)
    given = [entry["id"] for entry in annotations if type(entry.get("id")) in (int, str)]
    again = len(given) - len(set(given))
    remarks = [f"boxes without bbox, taken around their outlines: {outlines}"] * bool(outlines)
    remarks += [f"annotations whose id occurred before, kept: {again}"] * bool(again)
    return tuple(remarks)


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    """Outlines are most of the file, and would be gigabytes in memory: of one that has no box
    beside it the box around it is kept."""
    outline = entry.pop("segmentation", None)
    if outline and not entry.get("bbox"):
        entry[AROUND] = extent(read_outline(outline))
    return entry


def _with_outline(entry: dict[str, Any]) -> dict[str, Any]:
    """In arrays and bytes, which are a tenth of what JSON's numbers are in memory."""
    if "segmentation" in entry:
        outline = entry["segmentation"] = read_outline(entry["segmentation"])
        if outline != [] and not entry.get("bbox"):
            entry[AROUND] = extent(outline)
    return entry


def _outlines(annotations: Entries, where: Callable[[int], str]) -> list[Outline]:
    outlines = [entry.get("segmentation", []) for entry in annotations]
    for j, outline in enumerate(outlines):
        if outline is None:
            raise InputError(
                f"{where(j)}: its segmentation is no outline; give polygons of x, y in px, or run "
                "lengths that fill their size"
            )
    return outlines


def _boxes(annotations: Entries, where: Callable[[int], str]) -> np.ndarray:
    """`bbox` of all, or around their outlines, float64 [m, 4]."""
    values = [_box(entry) for entry in annotations]
    four = set(map(type, values)) <= {list} and set(map(len, values)) <= {4}
    if not four or not set(map(type, chain.from_iterable(values))) <= {int, float}:
        _refuse_box(annotations, values, where)
    try:
        boxes = np.array(values, np.float64).reshape(-1, 4)
    except OverflowError:
        boxes = np.array([[min(x, 2 * LARGEST) for x in value] for value in values], np.float64)
    require_finite(boxes, BBOX, where, "x, y, width, height in px")
    return boxes


def _box(entry: dict[str, Any]) -> Any:
    corners = entry.get(AROUND)
    if corners is None:
        return entry.get("bbox")
    x1, y1, x2, y2 = corners
    return [x1, y1, x2 - x1, y2 - y1]


def _refuse_box(annotations: Entries, values: list[Any], where: Callable[[int], str]) -> None:
    """Raise InputError naming the one of a million that is wrong."""
    for j, value in enumerate(values):
        numbers = isinstance(value, list) and {type(x) for x in value} <= {int, float}
        if numbers and len(value) == 4:
            continue
        if AROUND in annotations[j]:
            raise InputError(
                f"{where(j)}: has no bbox, and its segmentation is no outline; give polygons of "
                "three points or more, run lengths, or a bbox"
            )
        if "bbox" not in annotations[j]:
            raise InputError(
                f"{where(j)}: annotations[{j}] has no 'bbox', and no 'segmentation' whose box it "
                "could be; give one of them"
            )
        raise InputError(f"{where(j)}: bbox is {shown(value)}; give x, y, width, height in px")


def _stated(images: Entries) -> np.ndarray:
    sizes = [(entry.get("height"), entry.get("width")) for entry in images]
    known = [all(_number(side) and 0 < side < LARGEST for side in size) for size in sizes]
    return np.array(
        [size if ok else (UNSTATED, UNSTATED) for size, ok in zip(sizes, known, strict=True)]
    ).astype(np.int64)


def _number(value: Any) -> TypeGuard[float]:
    return type(value) is int or type(value) is float


def _area(value: Any) -> float:
    """NaN where it is not stated, or is no area."""
    known = _number(value) and 0 < value < LARGEST**2
    return float(value) if known else math.nan


def _crowd(annotations: Entries, where: Callable[[int], str]) -> np.ndarray:
    values = [entry.get("iscrowd") for entry in annotations]
    for j, value in enumerate(values):
        if value is not None and value not in (0, 1):
            raise InputError(f"{where(j)}: iscrowd is {shown(value)}; give 0 or 1")
    return np.array([bool(value) for value in values], bool)
