"""COCO panoptic annotations as semantic masks: every segment, of things and of stuff, becomes its
category.

The format (cocodataset.org, format-data, section 4): a JSON with `images`, `categories` and an
annotation an image, whose PNG holds segment ids as R + 256 G + 256² B, 0 where unlabelled, and
whose `segments_info` gives the category of each id. Crowd segments keep their category, as in
panopticapi's converters/panoptic2semantic_segmentation.py; unlabelled pixels are ignored.

The PNGs lie in a folder named as the JSON is, beside it, as COCO's zips unpack.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from downstream.dense.coco_json import LISTS, Entries, column, file_names, ids, indices
from downstream.dense.texts import require_name, short_line, shown
from downstream.segmentation.data.class_table import ClassTable, Row, read_colour
from downstream.segmentation.data.pairing import Pairs
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
        self._ends = np.cumsum([0, *map(len, segments)])  # [images + 1]: where each one's begin

    def read(self, i: int, image: Image.Image, data: bytes) -> tuple[np.ndarray, IdMap]:
        # [segments of this image, (id, class number)]: an id means something else in every image.
        pairs = self._pairs[self._ends[i] : self._ends[i + 1]].astype(np.int64)
        return colours_of(image), ignoring(pairs[:, 0].tolist(), pairs[:, 1].tolist(), [VOID])

    def unknown(self, value: int, colours: bool) -> tuple[str, str]:
        where = f"the segments_info of this file_name in {self.table.where}"
        return "a segment id", f"segment id {value} is not in {where}: mend either"


def is_panoptic(content: dict[str, Any]) -> bool:
    """Whether the first annotation has a PNG or segments, or there is none."""
    first = next(iter(content["annotations"]), {"segments_info": []})
    return not {"segments_info", "file_name"}.isdisjoint(first)


def read_panoptic(
    path: Path, content: dict[str, Any], images: str | None, class_names: list[str] | None
) -> tuple[Pairs, PanopticLabels]:
    """Images that have an annotation, their PNGs and segments; classes in the order of the file's
    `categories`, or of `class_names`.

    Args:
        content: of the file.
        images: folder of images; by default, for `annotations/panoptic_val2017.json`, the first of
            `val2017`, `../val2017`, `images`, `../images`, and the file's own folder, that has
            the first image.

    Raises:
        InputError: nothing is annotated, a category or image id that it does not define, a file
            that is missing; names the file, the place in it and the field.
    """
    described, annotations, categories = (content[key] for key in LISTS)
    if not annotations:
        raise InputError(f"{path}: annotations is empty, so nothing is labelled; check the file")
    if "segments_info" not in annotations[0]:
        raise InputError(
            f"{path}: annotations[0] has no segments_info, so this is no panoptic JSON; give "
            "COCO's panoptic_*.json"
        )
    table, category = _categories(path, categories)
    if class_names is not None:
        table = table.ordered(class_names)
    # By name, not by id: `class_names` may come from a set whose ids are others.
    number = {name: i for i, name in enumerate(table.names)}
    every = file_names(f"{path}: images", described)
    annotated = _annotated(path, described, annotations, every)
    files = file_names(f"{path}: annotations", annotations)
    source = FolderSource(str(_image_folder(path, images, every[0])))
    masks = FolderSource(str(_mask_folder(path)))
    image_of = {source.sample_id(i): i for i in range(len(source))}
    mask_names = {masks.sample_id(i) for i in range(len(masks))}
    for k, pair in enumerate(zip(annotated, files, strict=True)):
        for name, known, folder in zip(pair, (image_of, mask_names), (source, masks), strict=True):
            if name not in known:
                raise InputError(
                    f"{path}: annotations[{k}].file_name: {short_line(name[:200])} is not in "
                    f"{folder.path}; add it"
                )
    segments = [
        _segments(f"{path}: annotations[{k}]", annotation, category, number)
        for k, annotation in enumerate(annotations)
    ]
    without = sorted(set(every) - set(annotated))
    rows = [image_of[name] for name in annotated]
    pairs = Pairs(source, rows, files, masks.path, without, [str(path)])
    return pairs, PanopticLabels(table, segments)


def _annotated(
    path: Path, images: Entries, annotations: Entries, names: Sequence[str]
) -> list[str]:
    """The image's file name of each annotation; an image has one at most."""
    known = ids(f"{path}: images", images, text=True)
    numbers = indices(str(path), annotations, "image_id", known, lambda k: f"annotations[{k}]")
    first: dict[str, int] = {}
    for k, i in enumerate(numbers):
        if first.setdefault(names[i], k) != k:
            raise InputError(
                f"{path}: annotations[{k}].image_id: {short_line(names[i][:200])} has "
                f"annotations[{first[names[i]]}], too; keep one"
            )
    return list(first)


def _categories(path: Path, categories: Entries) -> tuple[ClassTable, dict[int, str]]:
    """The class table, and the name of each category id."""
    place = f"{path}: categories"
    names = column(place, categories, "name")
    rows = []
    for i, identity in enumerate(column(place, categories, "id")):
        if type(identity) is not int:
            raise InputError(f"{place}[{i}].id is {shown(identity)}; give a whole number")
        colour = categories[i].get("color")
        if colour is not None:
            colour = read_colour(colour, f"{place}[{i}].color")
        rows.append(Row(identity, require_name(names[i], f"{place}[{i}].name"), colour))
    # Display colours repeat in some sets, and mean nothing here: segments are told by ids.
    if len({row.colour for row in rows}) < len(rows):
        rows = [Row(row.id, row.name) for row in rows]
    return ClassTable(tuple(rows), str(path)), {row.id: row.name for row in rows}


def _segments(
    where: str, annotation: dict[str, Any], category: dict[int, str], number: dict[str, int]
) -> list[tuple[int, int]]:
    """Segment id and class number of an annotation's segments."""
    numbers: dict[int, int] = {}
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
        if type(identity) is not int or not 0 < identity < 2**24 or identity in numbers:
            raise InputError(
                f"{place}.id is {shown(identity)}; give a new number from 1 to 16777215"
            )
        numbers[identity] = number[category[kind]]
    return list(numbers.items())


def _mask_folder(path: Path) -> Path:
    folder = path.with_suffix("")
    if not folder.is_dir():
        raise InputError(f"{path}: its PNGs are missing; unpack them into {folder}")
    return folder


def _image_folder(path: Path, images: str | None, first: str) -> Path:
    if images is not None:
        if not Path(images).is_dir():
            raise InputError(f"{path}::{images}: {images} is no folder; check the path")
        return Path(images)
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
