"""YOLO's layout: `images/<split>/x.jpg` with `labels/<split>/x.txt`, or `<split>/images` with
`<split>/labels`, or without splits; names in `data.yaml` or `classes.txt`.

A line is `class x y width height`: centre and size as shares of the image (darknet; ultralytics'
"Detect" format). Labels speak of the upright image, as the tools that write them (ultralytics
`verify_image_label`, which turns the size by EXIF) see it. An image without a label file is a
negative, as there; a label file without an image is an error.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from downstream.data.annotations import (
    UNSTATED,
    Annotations,
    images_by_stem,
    read_text,
    require_finite,
    require_unique,
)
from ssld.errors import InputError

FIELDS = ("x", "y", "width", "height")
PX = 1.5
"""A share above this is no rounding: it is px."""


def read_yolo(path: str, root: Path, split: str | None) -> Annotations:
    """Read the labels of a split.

    Args:
        path: what the user gave, for messages.

    Raises:
        InputError: no names, a label file without image, a line that is not a class and 4 shares.
    """
    images_folder, labels_folder = folders(path, root, split)
    class_names, source = _class_names(root, labels_folder)
    by_stem = images_by_stem(images_folder)
    if not by_stem:
        raise InputError(f"{path}: no image in {images_folder}")
    files = {file.stem: file for file in sorted(labels_folder.glob("*.txt"))}
    files.pop("classes", None)
    for stem, file in files.items():
        if stem not in by_stem:
            raise InputError(
                f"{file}: its image {stem!r} (with any extension) is not in {images_folder}; "
                "complete the images"
            )
    stems = sorted(by_stem)
    names = [by_stem[stem] for stem in stems]
    table, image, where = _read_files([files.get(stem) for stem in stems], len(class_names))
    boxes = table[:, 1:]
    _check_shares(boxes, where, [names[i] for i in image])
    unlabeled = sum(stem not in files for stem in stems)
    return Annotations(
        path=path,
        format="YOLO",
        folder=str(images_folder),
        names=names,
        stated=np.full((len(names), 2), UNSTATED, np.int64),
        image_ids=list(range(1, len(names) + 1)),
        class_names=class_names,
        category_ids=list(range(len(class_names))),
        image=np.array(image, np.int64),
        labels=table[:, 0].astype(np.int64),
        xyxy=np.concatenate(
            [boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1
        ),
        crowd=np.zeros(len(table), bool),
        places=where.__getitem__,
        files=[str(source), *(str(file) for file in files.values())],
        shares=True,
        remarks=(
            (f"images without a label file, taken as without boxes: {unlabeled} of {len(names)}",)
            if unlabeled
            else ()
        ),
    )


def folders(path: str, root: Path, split: str | None) -> tuple[Path, Path]:
    """Of images and of labels.

    Raises:
        InputError: there are none for the split.
    """
    if split is None:
        pairs = [(root / "images", root / "labels")]
    else:
        pairs = [
            (root / "images" / split, root / "labels" / split),
            (root / split / "images", root / split / "labels"),
        ]
    for images, labels in pairs:
        if images.is_dir() and labels.is_dir():
            return images, labels
    images, labels = pairs[0]
    absent = images if not images.is_dir() else labels
    raise InputError(f"{path}: there is no folder {absent}; a split is given as FOLDER::SPLIT")


def _class_names(root: Path, labels: Path) -> tuple[list[str], Path]:
    """-> names by class number, and the file that has them."""
    table = root / "data.yaml"
    lists = [file for file in (root / "classes.txt", labels / "classes.txt") if file.is_file()]
    if table.is_file():
        return _names_in_yaml(table), table
    if not lists:
        raise InputError(
            f"{table}: no such file, and no classes.txt; give the names of the classes in one of "
            "them, in the order of their numbers"
        )
    names = [line.strip() for line in read_text(lists[0]).splitlines() if line.strip()]
    require_unique(names, lambda i: f"{lists[0]}: name {i}")
    return names, lists[0]


def _names_in_yaml(file: Path) -> list[str]:
    try:
        content = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        raise InputError(f"{file}: cannot be read as YAML ({error})") from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise InputError(f"{file}: names has the keys {sorted(names)}; number them from 0 on")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise InputError(f"{file}: has no 'names'; give the classes in the order of their numbers")
    if content.get("nc", len(names)) != len(names):
        raise InputError(f"{file}: nc is {content['nc']}, but names has {len(names)}; mend one")
    require_unique(names, lambda i: f"{file}: names[{i}]")
    return [str(name) for name in names]


def _read_files(files: list[Path | None], classes: int) -> tuple[np.ndarray, list[int], list[str]]:
    """-> float64 [m, 5] of class, x, y, width, height; each box's image; each box's line."""
    rows: list[list[float]] = []
    image: list[int] = []
    where: list[str] = []
    for number, file in enumerate(files):
        if file is not None:
            for line, row in _read_file(file, classes):
                rows.append(row)
                image.append(number)
                where.append(f"{file}: line {line}")
    return np.array(rows, np.float64).reshape(-1, 5), image, where


def _read_file(file: Path, classes: int) -> list[tuple[int, list[float]]]:
    """Line numbers from 1 on, and class, x, y, width, height."""
    found = []
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        parts = line.split()
        if not parts:
            continue
        try:
            row = [float(part) for part in parts]
        except ValueError:
            row = []
        if len(row) != 5:
            raise InputError(
                f"{file}: line {number} is {line.strip()[:60]!r}; give class x y width height, "
                "five numbers (not outlines or keypoints)"
            )
        if row[0] not in range(classes):
            raise InputError(
                f"{file}: line {number}: class is {parts[0]}; the {classes} classes have the "
                f"numbers 0 to {classes - 1}"
            )
        found.append((number, row))
    return found


def _check_shares(boxes: np.ndarray, where: list[str], names: list[str]) -> None:
    def place(j: int) -> str:
        return f"{where[j]} of image {names[j]!r}"

    require_finite(boxes, FIELDS, place, "a share of the image's size")
    over = np.argwhere(boxes > PX)
    if len(over):
        row, column = (int(i) for i in over[0])
        raise InputError(
            f"{place(row)}: {FIELDS[column]} is {boxes[row, column]:g}; give shares of the image's "
            "size between 0 and 1, not px"
        )
