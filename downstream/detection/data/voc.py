"""Pascal VOC's layout: `Annotations/*.xml`, `JPEGImages/`, `ImageSets/Main/<split>.txt`, or the
first two in a folder a split; or a folder of pictures with an xml file beside each, as labelImg and
Roboflow save them.

Pixels count from 1 and both corners belong to the box (VOC's development kit), so 1 is taken off
xmin and ymin, as detectron2 `pascal_voc.py` does. Files of labelImg and others that count
from 0 come out one pixel larger at the upper left, and are cut at the edge; one rule for all splits
is worth more than that pixel. `difficult` objects are crowd: never trained on, ignored in
evaluation, as the kit does.

Classes are the lines of `classes.txt` beside the folders, or else the sorted names that occur (for
VOC itself its official order); a set whose splits differ in them needs the file, or the names of
the other split as `class_names`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from downstream.dense.cvat import is_cvat
from downstream.dense.pictures import images_by_stem
from downstream.dense.shapes import UNSTATED, Rows, names_in_use, require_finite
from downstream.dense.texts import read_text, require_flag, require_unique, shown
from downstream.dense.xml_files import read_xml
from downstream.detection.data.annotations import Annotations
from ssld.common.errors import InputError

CORNERS = ("xmin", "ymin", "xmax", "ymax")
CLASSES = "classes.txt"
LISTS = ("Annotations", "annotations", "annotations/xmls")
PICTURES = ("JPEGImages", "images", "Images", "jpegimages")


@dataclass(frozen=True)
class Folders:
    """Where a set has its files."""

    xml: Path
    images: Path
    root: Path
    """With the lists of splits and of classes."""
    whole: bool = False
    """Whether all of it is the split that was asked for."""


def find_voc(root: Path, split: str | None) -> Folders | None:
    """The folders of a set in this layout, None where it is none."""
    for folder in (root / split, root) if split else (root,):
        for name in LISTS:
            if has_voc(folder / name) or (name == "Annotations" and (folder / name).is_dir()):
                images = next((folder / x for x in PICTURES if (folder / x).is_dir()), folder)
                return Folders(folder / name, images, folder, whole=folder != root)
        if has_voc(folder):
            return Folders(folder, folder, folder, whole=folder != root)
    return None


def has_voc(folder: Path) -> bool:
    """Whether a folder has xml files, of which the first is not CVAT's."""
    first = next((file for file in folder.glob("*.xml") if not file.name.startswith(".")), None)
    return first is not None and not is_cvat(first)


def read_voc(path: str, where: Folders, split: str | None) -> Annotations:
    """Read the objects of a split, or of all xml files.

    Args:
        path: what the user gave, for messages.

    Raises:
        InputError: a file is missing, not XML, or has an object without a name or corners.
    """
    images = images_by_stem(where.images)
    files = sorted(file for file in where.xml.glob("*.xml") if not file.name.startswith("."))
    root = where.root
    left_out = 0
    if split is not None and not where.whole:
        files = [where.xml / f"{name}.xml" for name in _split(where, split)]
    else:
        left_out = sum(map(len, images.values())) - len({file.stem for file in files} & set(images))
    if not files:
        raise InputError(f"{path}: no xml file in {where.xml}")
    rows, stated, names, guessed = Rows(), [], [], []
    for number, file in enumerate(files):
        tree, guess = read_xml(file)
        names.append(_image_of(file, tree, images.get(file.stem, []), where.images))
        _add_objects(file, tree, number, rows)
        stated.append(_size(tree))
        guessed += [f"{file.name} as {guess}"] * bool(guess)
    corners = rows.table()
    require_finite(corners, CORNERS, lambda j: f"{rows.where[j]} of image {names[rows.image[j]]!r}")
    table = root / CLASSES
    class_names = names_in_use(table if table.is_file() else None, rows)
    index = {name: i for i, name in enumerate(class_names)}
    lists = (table, root / f"ImageSets/Main/{split}.txt")
    return Annotations(
        path=path,
        format="VOC",
        folder=str(where.images),
        names=names,
        stated=np.array(stated, np.int64),
        image_ids=list(range(1, len(names) + 1)),
        class_names=class_names,
        category_ids=list(range(len(class_names))),
        image=np.array(rows.image, np.int64),
        labels=np.array([index[name] for name in rows.labels], np.int64),
        xyxy=corners - (1.0, 1.0, 0.0, 0.0),
        crowd=np.array(rows.crowd, bool),
        places=rows.where.__getitem__,
        files=[str(file) for file in lists if file.is_file()] + list(map(str, files)),
        remarks=_remarks(left_out, guessed),
    )


def _remarks(left_out: int, guessed: Sequence[str]) -> tuple[str, ...]:
    remarks = [f"images without an xml file, left out: {left_out}"] * bool(left_out)
    if guessed:
        more = ", ..." if len(guessed) > 3 else ""
        remarks.append(
            f"xml files not in the encoding that they state: {len(guessed)}, read otherwise "
            f"({', '.join(guessed[:3])}{more}); look at the names of the classes"
        )
    return tuple(remarks)


def _split(where: Folders, split: str) -> list[str]:
    file = where.root / f"ImageSets/Main/{split}.txt"
    if not file.is_file():
        known = sorted(other.stem for other in file.parent.glob("*.txt") if "_" not in other.stem)
        hint = f"; there are {', '.join(known)}" if known else ""
        raise InputError(f"{file}: no such split{hint}")
    names = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    for i, name in enumerate(names):
        if len(name.split()) > 1:
            raise InputError(
                f"{file}: line {i + 1} is {name!r}; give a list of whole images such as train.txt, "
                "one name a line, not that of one class"
            )
    require_unique(names, lambda i: f"{file}: name {i + 1}")
    for name in names:
        if not (where.xml / f"{name}.xml").is_file():
            raise InputError(f"{file}: {name!r} has no xml file in {where.xml}")
    return names


def _image_of(file: Path, tree: ElementTree.Element, result: list[str], folder: Path) -> str:
    """The picture of an xml file: the one of its name; of several that which it names.

    Raises:
        InputError: there is none, or it names none of several.
    """
    if not result:
        raise InputError(
            f"{file}: its image {file.stem!r} (with any extension) is not in {folder}; "
            "complete the images"
        )
    if len(result) == 1:
        return result[0]
    named = (tree.findtext("filename") or "").strip().replace("\\", "/").rpartition("/")[2]
    if named not in result:
        raise InputError(
            f"{file}: is of {' or of '.join(result[:3])} in {folder}, and its filename "
            f"{shown(named)} is none of them; name it there, or rename one"
        )
    return named


def _add_objects(file: Path, tree: ElementTree.Element, number: int, rows: Rows) -> None:
    for i, entry in enumerate(tree.iter("object")):
        where = f"{file}: object {i + 1}"
        name, box = (entry.findtext("name") or "").strip(), entry.find("bndbox")
        if not name or box is None:
            raise InputError(f"{where} has no {'bndbox' if name else 'name'}; add it")
        corners = [_number(box, corner, where) for corner in CORNERS]
        difficult = require_flag(entry.findtext("difficult"), f"{where}: difficult")
        rows.add(number, name, corners, where, difficult)


def _size(tree: ElementTree.Element) -> tuple[int, int]:
    """Height and width that the file states."""
    size = [(tree.findtext(f"size/{side}") or "").strip() for side in ("height", "width")]
    if all(re.fullmatch(r"[0-9]{1,9}", side) and int(side) > 0 for side in size):
        return int(size[0]), int(size[1])
    return UNSTATED, UNSTATED  # labelImg writes 0 where it does not know


def _number(box: ElementTree.Element, corner: str, where: str) -> float:
    text = box.findtext(corner)
    try:
        return float(text or "")
    except ValueError:
        raise InputError(f"{where}: {corner} is {shown(text)}; give a number of px") from None
