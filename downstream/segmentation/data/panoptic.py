"""COCO panoptic annotations as semantic masks: every segment, of things and of stuff, becomes its
category.

The format (cocodataset.org, format-data, section 4): a JSON with `images`, `categories` and an
annotation an image, whose PNG holds segment ids as R + 256 G + 256² B, 0 where unlabelled, and
whose `segments_info` gives the category of each id. Crowd segments keep their category, as in
panopticapi's converters/panoptic2semantic_segmentation.py; unlabelled pixels are ignored.

The PNGs lie in a folder named as the JSON is, beside it, as COCO's zips unpack.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from downstream.dense.texts import (
    decode_text,
    one_line,
    require_name,
    require_unique,
    shown,
    writable,
)
from downstream.segmentation.data.class_table import ClassTable, Row, read_colour
from downstream.segmentation.data.layouts import Pairs
from downstream.segmentation.data.pixels import IdMap, colours_of, ignoring
from ssld.common.errors import InputError
from ssld.data.folder import FolderSource

VOID = 0
"""Segment id of unlabelled pixels."""


class PanopticLabels:
    """Segment ids of each image and their class numbers, in flat arrays: they pickle cheaply.

    Args:
        segments: (segment id, class number) of each image.
    """

    def __init__(self, table: ClassTable, segments: list[list[tuple[int, int]]]) -> None:
        self.table = table
        flat = [pair for pairs in segments for pair in pairs]
        self._pairs = np.array(flat, np.uint32).reshape(-1, 2)
        self._ends = np.cumsum([0, *map(len, segments)])

    def read(self, i: int, image: Image.Image, data: bytes) -> tuple[np.ndarray, IdMap]:
        pairs = self._pairs[self._ends[i] : self._ends[i + 1]].astype(np.int64)
        return colours_of(image), ignoring(pairs[:, 0].tolist(), pairs[:, 1].tolist(), [VOID])

    def unknown(self, value: int, colours: bool) -> tuple[str, str]:
        where = f"the segments_info of this file_name in {self.table.where}"
        return "a segment id", f"segment id {value} is not in {where}: mend either"


def read_panoptic(
    path: Path, images: str | None, class_names: list[str] | None
) -> tuple[Pairs, PanopticLabels]:
    """Images that have an annotation, their PNGs and segments; classes in the order of the file's
    `categories`, or of `class_names`.

    Args:
        images: folder of images; by default, for `annotations/panoptic_val2017.json`, the first of
            `val2017`, `../val2017`, `images`, `../images`, and the file's own folder, that has
            the first image.

    Raises:
        InputError: no panoptic JSON, a category or image id that it does not define, a file that
            is missing; names the file, the place in it and the field.
    """
    tree = _load(path)
    table, category = _categories(path, tree)
    if class_names is not None:
        table = table.ordered(class_names)
    number = {name: i for i, name in enumerate(table.names)}
    source = FolderSource(str(_image_folder(path, images, tree)))
    masks = FolderSource(str(_mask_folder(path)))
    image_of = {source.sample_id(i): i for i in range(len(source))}
    mask_names = {masks.sample_id(i) for i in range(len(masks))}
    rows, files, segments = [], [], []
    annotated = _annotated(path, tree)
    for k, name in enumerate(annotated):
        where = f"{path}: annotations[{k}]"
        file = _name(path, tree, "annotations", k, "file_name")
        for known, wanted, folder in ((image_of, name, source), (mask_names, file, masks)):
            if wanted not in known:
                raise InputError(
                    f"{where}.file_name: {one_line(wanted[:200])} is not in {folder.path}; add it"
                )
        rows.append(image_of[name])
        files.append(file)
        segments.append(_segments(where, tree["annotations"][k], category, number))
    every = [_name(path, tree, "images", i, "file_name") for i in range(len(tree["images"]))]
    left = sorted(set(every) - set(annotated))
    return Pairs(source, rows, files, masks.path, left, [str(path)]), PanopticLabels(
        table, segments
    )


def _annotated(path: Path, tree: dict[str, Any]) -> list[str]:
    """The image's file name of each annotation."""
    if not tree["annotations"]:
        raise InputError(f"{path}: annotations is empty, so nothing is labelled; check the file")
    ids = [_id(path, tree, "images", i, "id") for i in range(len(tree["images"]))]
    require_unique(ids, lambda i: f"{path}: images[{i}].id")
    images = {number: _name(path, tree, "images", i, "file_name") for i, number in enumerate(ids)}
    names: dict[str, int] = {}
    for k in range(len(tree["annotations"])):
        where = f"{path}: annotations[{k}].image_id"
        image = _id(path, tree, "annotations", k, "image_id")
        if image not in images:
            raise InputError(f"{where} is {shown(image)}, which no image has; mend it")
        if images[image] in names:
            raise InputError(
                f"{where}: {one_line(images[image][:200])} has "
                f"annotations[{names[images[image]]}], too; keep one"
            )
        names[images[image]] = k
    return list(names)


def _load(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(decode_text(path.read_bytes())[0])
    except (OSError, ValueError, RecursionError) as error:
        said = one_line(str(error))
        raise InputError(f"{path}: cannot be read as JSON ({said})") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(tree, dict) or not isinstance(tree.get(key), list):
            raise InputError(f"{path}: has no list {key!r}; give a COCO panoptic JSON")
    first = tree["annotations"][0] if tree["annotations"] else None
    if isinstance(first, dict) and "segments_info" not in first:
        raise InputError(
            f"{path}: annotations[0] has no segments_info, so this is no panoptic JSON; give "
            "COCO's panoptic_*.json"
        )
    return tree


def _field(path: Path, tree: dict[str, Any], key: str, i: int, field: str) -> Any:
    entry = tree[key][i]
    if not isinstance(entry, dict) or field not in entry:
        raise InputError(f"{path}: {key}[{i}] has no field {field!r}; add it")
    return entry[field]


def _name(path: Path, tree: dict[str, Any], key: str, i: int, field: str) -> str:
    value = _field(path, tree, key, i, field)
    if not isinstance(value, str):
        raise InputError(f"{path}: {key}[{i}].{field} is {shown(value)}; give the name of a file")
    return value


def _id(path: Path, tree: dict[str, Any], key: str, i: int, field: str) -> int | str:
    value = _field(path, tree, key, i, field)
    if type(value) not in (int, str):  # 1.0 and True would be equal to 1
        raise InputError(f"{path}: {key}[{i}].{field} is {shown(value)}; give a whole number")
    return value


def _categories(path: Path, tree: dict[str, Any]) -> tuple[ClassTable, dict[Any, str]]:
    """The class table, and the name of each category id."""
    rows = []
    for i, entry in enumerate(tree["categories"]):
        where = f"{path}: categories[{i}]"
        name = require_name(_field(path, tree, "categories", i, "name"), f"{where}.name")
        identity = _field(path, tree, "categories", i, "id")
        if type(identity) is not int:
            raise InputError(f"{where}.id is {shown(identity)}; give a whole number")
        colour = entry.get("color")
        if colour is not None:
            colour = read_colour(colour, f"{where}.color")
        rows.append(Row(identity, name, colour))
    # Display colours repeat in some sets, and mean nothing here: segments are told by ids.
    if len({row.colour for row in rows}) < len(rows):
        rows = [Row(row.id, row.name) for row in rows]
    return ClassTable(tuple(rows), str(path)), {row.id: row.name for row in rows}


def _segments(
    where: str, annotation: dict[str, Any], category: dict[Any, str], number: dict[str, int]
) -> list[tuple[int, int]]:
    """Segment id and class number of an annotation's segments."""
    found: dict[int, int] = {}
    segments = annotation.get("segments_info", [])
    if not isinstance(segments, list):
        raise InputError(f"{where}.segments_info is {shown(segments)}; give a list of segments")
    for j, segment in enumerate(segments):
        place = f"{where}.segments_info[{j}]"
        for field in ("id", "category_id"):
            if not isinstance(segment, dict) or field not in segment:
                raise InputError(f"{place} has no field {field!r}; add it")
        identity, kind = segment["id"], segment["category_id"]
        if type(kind) is not int or kind not in category:
            raise InputError(
                f"{place}.category_id is {shown(kind)}, which no category has; add it to "
                "categories, or mend it"
            )
        if type(identity) is not int or not 0 < identity < 2**24 or identity in found:
            raise InputError(
                f"{place}.id is {shown(identity)}; give a new number from 1 to 16777215"
            )
        found[identity] = number[category[kind]]
    return list(found.items())


def _mask_folder(path: Path) -> Path:
    folder = path.with_suffix("")
    if not folder.is_dir():
        raise InputError(f"{path}: its PNGs are missing; unpack them into {folder}")
    return folder


def _image_folder(path: Path, images: str | None, tree: dict[str, Any]) -> Path:
    if images is not None:
        if not Path(images).is_dir():
            raise InputError(f"{path}::{images}: {images} is no folder; check the path")
        return Path(images)
    first = _name(path, tree, "images", 0, "file_name") if tree["images"] else ""
    if not writable(first):
        raise InputError(f"{path}: images[0].file_name is {shown(first)}, which no file has")
    name = path.stem.removeprefix("panoptic_")
    here = path.parent
    places = [here / name, here.parent / name, here / "images", here.parent / "images", here]
    for place in places:
        if os.path.isfile(place / first):
            return place
    raise InputError(
        f"{path}: images[0].file_name {shown(first)} is in none of "
        f"{', '.join(map(str, places))}; give the folder of images as {path}::FOLDER"
    )
