"""CVAT's own XML, "CVAT for images 1.1" (opencv/cvat `dataset_manager/formats/cvat.py`): one
`annotations.xml`, and `images/` beside it where they were exported, too.

Boxes (turned ones too), polygons, ellipses and masks are shapes; points, polylines, cuboids,
skeletons and tags are left out and counted. `z_order` says what lies on what. A mask is run lengths
of the pixels of its own box, row by row, beginning with those that are not of it. The classes are
the labels of `meta`, in their order.

A project's file has the images of all of its tasks, each of a subset: `DIR::SUBSET`. "CVAT for
video 1.1" has tracks in the place of images, `cvat_video.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from downstream.dense.coco_json import find_images
from downstream.dense.cvat_video import frames_of_tracks
from downstream.dense.outlines import Outline, around, encode, placed
from downstream.dense.pictures import posix
from downstream.dense.shapes import (
    UNSTATED,
    Rows,
    Shapes,
    counted,
    ellipse,
    polygon,
    rectangle,
    require_near,
    stated_size,
    turned,
)
from downstream.dense.texts import require_unique, shown
from downstream.dense.xml_files import read_xml
from ssld.common.errors import InputError
from ssld.data.decode import MAX_PIXELS

NAME = "annotations.xml"
HEAD = 2**12
"""Bytes within which the root of an XML file stands."""
AREAS = ("box", "polygon", "ellipse", "mask")
OTHERS = ("polyline", "points", "cuboid", "skeleton", "tag")


def is_cvat(file: Path) -> bool:
    """Whether an XML file has CVAT's root, `annotations`."""
    try:
        with open(file, "rb") as opened:
            return b"<annotations>" in opened.read(HEAD).replace(b"\0", b"")
    except OSError:
        return False


def read_cvat(
    path: str, file: Path, subset: str | None, images: str | None, masks: bool = False
) -> Shapes:
    """
    Args:
        path: what the user gave, for messages.
        subset: of a project whose images are wanted.
        images: folder of the images; by default the one in which they are found.
        masks: keep the outlines.

    Raises:
        InputError: a video without its frames; several subsets and none was asked for; an image
            that is missing, a label that `meta` lacks, a shape that is none; names the image and
            the shape.
    """
    tree, _ = read_xml(file)
    remarks: list[str] = []
    if tree.find("track") is not None:
        images, remarks = frames_of_tracks(file, tree, images)
    entries = _of_subset(path, tree.findall("image"), subset)
    if not entries:
        raise InputError(f"{file}: has no image; export a task that has some")
    names = [posix(_field(entry, "name", f"{file}: image {i}")) for i, entry in enumerate(entries)]
    require_unique(names, lambda i: f"{file}: the name of image {i}")
    classes = [
        name.strip()
        for label in tree.iter("label")
        if label.find("parent") is None and (name := label.findtext("name"))
    ]
    classes = list(dict.fromkeys(classes))  # of a project, once a task
    rows, left = Rows(), Counter[str]()
    for number, (entry, name) in enumerate(zip(entries, names, strict=True)):
        _add_shapes(f"{file}: image {shown(name)}", number, entry, rows, left, masks)
    if not classes:
        classes = sorted(set(rows.labels))
    known = set(classes)
    for where, label in zip(rows.where, rows.labels, strict=True):
        if label not in known:
            raise InputError(f"{where}: label is {shown(label)}, which meta does not have; add it")
    subset, inside = entries[0].get("subset"), Path(images) if images else file.parent / "images"
    if subset and (inside / subset).is_dir():  # as a project's are exported
        names = [f"{subset}/{name}" for name in names]
    folder, names = find_images(str(file), names, images, lambda i: f"the name of image {i}")
    return Shapes(
        path=path,
        format="CVAT",
        folder=folder,
        names=names,
        stated=[_size(entry) for entry in entries],
        class_names=classes,
        rows=rows,
        files=[str(file)],
        remarks=(*remarks, *counted("shapes that have no area, left out", left)),
    )


def _of_subset(path: str, entries: list[Element], subset: str | None) -> list[Element]:
    subsets = sorted({entry.get("subset") or "default" for entry in entries})
    if subset is None and len(subsets) < 2:
        return entries
    chosen = [entry for entry in entries if (entry.get("subset") or "default") == subset]
    if not chosen:
        root = path.partition("::")[0]
        choice = " or ".join(f"{root}::{name}" for name in subsets)
        problem = "which subset" if subset is None else f"no subset {subset!r}"
        raise InputError(f"{root}: {problem}? give {choice}")
    return chosen


def _add_shapes(
    where: str, image: int, entry: Element, rows: Rows, left: Counter[str], masks: bool
) -> None:
    seen: Counter[str] = Counter()
    shapes = []
    for shape in entry:
        seen[shape.tag] += 1
        if shape.tag in AREAS:
            place = f"{where}: {shape.tag} {seen[shape.tag]}"
            shapes.append((_number(shape, "z_order", place, "0"), place, shape))
        elif shape.tag in OTHERS:
            left[shape.tag] += 1
    # Stable: of one level the later ones lie above.
    for _, place, shape in sorted(shapes, key=lambda entry: entry[0]):
        label = _field(shape, "label", place).strip()
        if shape.tag == "mask":
            box, outline = _mask(shape, _size(entry), place, masks)
        else:
            points = require_near(_points(shape, place), place)
            box, outline = around(points.ravel()), polygon(points)
        rows.add(image, label, box, place, more=outline if masks else [])


def _points(shape: Element, where: str) -> np.ndarray:
    """float64 [n, 2]."""
    turn = _number(shape, "rotation", where, "0")
    if shape.tag == "box":
        box = [_number(shape, key, where) for key in ("xtl", "ytl", "xbr", "ybr")]
        return turned(rectangle(box), turn)
    if shape.tag == "ellipse":
        values = (_number(shape, key, where) for key in ("cx", "cy", "rx", "ry"))
        return turned(ellipse(*values), turn)
    text = _field(shape, "points", where)
    try:
        table = np.array([pair.split(",") for pair in text.split(";") if pair], np.float64)
    except ValueError:
        table = np.zeros(0)
    if table.shape != (len(table), 2) or len(table) < 3:
        raise InputError(f"{where}: points is {shown(text)}; give x,y;x,y;x,y of three or more")
    return table


def _mask(
    shape: Element, size: tuple[int, int], where: str, masks: bool
) -> tuple[list[float], Outline]:
    """The box of a mask, and the mask in the whole picture."""
    left, top, width, height = (
        int(_number(shape, key, where)) for key in ("left", "top", "width", "height")
    )
    box = [float(x) for x in (left, top, left + width, top + height)]
    if not masks:
        return box, []
    text = _field(shape, "rle", where)
    try:
        runs = np.array(text.split(","), np.int64)
    except (ValueError, OverflowError):
        runs = np.zeros(0, np.int64)
    fits = 0 < width * height == runs.sum() and width * height <= MAX_PIXELS
    if (runs < 0).any() or not fits or size[0] == UNSTATED:
        raise InputError(
            f"{where}: rle has {runs.sum()} px, its width and height are {width} and {height}; "
            "give run lengths that fill them, and the size of the image"
        )
    pixels = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    return box, encode(placed(pixels, left, top, size))


def _size(entry: Element) -> tuple[int, int]:
    sides = [entry.get(side, "") for side in ("height", "width")]
    height, width = (int(x) if re.fullmatch("[0-9]{1,9}", x) else None for x in sides)
    return stated_size(height, width)


def _field(entry: Element, key: str, where: str) -> str:
    value = entry.get(key)
    if not value or not value.strip():
        raise InputError(f"{where}: has no {key}; it is no file of CVAT's format 1.1")
    return value


def _number(entry: Element, key: str, where: str, default: str = "") -> float:
    text = entry.get(key, default)
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not abs(value) < 1e9:
        raise InputError(f"{where}: {key} is {shown(text)}; give a number")
    return value
