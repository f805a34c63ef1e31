"""Pascal VOC's layout: `Annotations/*.xml`, `JPEGImages/`, `ImageSets/Main/<split>.txt`.

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

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from downstream.data.annotations import (
    UNSTATED,
    Annotations,
    images_by_stem,
    read_text,
    require_finite,
    require_unique,
)
from ssld.errors import InputError

CORNERS = ("xmin", "ymin", "xmax", "ymax")
CLASSES = "classes.txt"


def read_voc(path: str, root: Path, split: str | None) -> Annotations:
    """Read the objects of a split, or of all `Annotations/*.xml`.

    Args:
        path: what the user gave, for messages.

    Raises:
        InputError: a file is missing, not XML, or has an object without a name or corners.
    """
    folder = root / "JPEGImages" if (root / "JPEGImages").is_dir() else root / "images"
    images = images_by_stem(folder)
    files = sorted((root / "Annotations").glob("*.xml"))
    left_out = 0
    if split is not None:
        files = [root / "Annotations" / f"{name}.xml" for name in _split(root, split)]
    else:
        left_out = len(images.keys() - {file.stem for file in files})
    if not files:
        raise InputError(f"{path}: no xml file in {root / 'Annotations'}")
    for file in files:
        if file.stem not in images:
            raise InputError(
                f"{file}: its image {file.stem!r} (with any extension) is not in {folder}; "
                "complete the images"
            )
    names = [images[file.stem] for file in files]
    rows, stated = _Rows(names), []
    for number, file in enumerate(files):
        stated.append(_read_file(file, number, rows))
    class_names = _class_names(root / CLASSES, rows)
    index = {name: i for i, name in enumerate(class_names)}
    sources = [
        file for file in (root / CLASSES, root / f"ImageSets/Main/{split}.txt") if file.is_file()
    ]
    return Annotations(
        path=path,
        format="VOC",
        folder=str(folder),
        names=names,
        stated=np.array(stated, np.int64),
        image_ids=list(range(1, len(names) + 1)),
        class_names=class_names,
        category_ids=list(range(len(class_names))),
        image=np.array(rows.image, np.int64),
        labels=np.array([index[name] for name in rows.labels], np.int64),
        xyxy=rows.corners() - (1.0, 1.0, 0.0, 0.0),
        crowd=np.array(rows.difficult, bool),
        places=rows.place,
        files=[str(file) for file in sources + files],
        remarks=(f"images without an xml file, left out: {left_out}",) if left_out else (),
    )


class _Rows:
    """Objects as they are read."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.image: list[int] = []
        self.labels: list[str] = []
        self.boxes: list[list[float]] = []
        self.difficult: list[bool] = []
        self.where: list[str] = []

    def place(self, j: int) -> str:
        return self.where[j]

    def corners(self) -> np.ndarray:
        """float64 [m, 4] as written."""
        values = np.array(self.boxes, np.float64).reshape(-1, 4)
        require_finite(
            values, CORNERS, lambda j: f"{self.where[j]} of image {self.names[self.image[j]]!r}"
        )
        return values


def _split(root: Path, split: str) -> list[str]:
    file = root / f"ImageSets/Main/{split}.txt"
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
        if not (root / "Annotations" / f"{name}.xml").is_file():
            raise InputError(f"{file}: {name!r} has no xml file in {root / 'Annotations'}")
    return names


def _read_file(file: Path, number: int, rows: _Rows) -> tuple[int, int]:
    """Append the file's objects -> (height, width) that it states."""
    try:
        tree = ElementTree.fromstring(file.read_bytes())
    except (OSError, ElementTree.ParseError) as error:
        raise InputError(f"{file}: cannot be read as XML ({error})") from error
    for i, entry in enumerate(tree.iter("object")):
        where = f"{file}: object {i + 1}"
        name, box = (entry.findtext("name") or "").strip(), entry.find("bndbox")
        if not name or box is None:
            raise InputError(f"{where} has no {'bndbox' if name else 'name'}; add it")
        rows.boxes.append([_number(box, corner, where) for corner in CORNERS])
        rows.labels.append(name)
        rows.difficult.append((entry.findtext("difficult") or "0").strip() == "1")
        rows.image.append(number)
        rows.where.append(where)
    size = [tree.findtext(f"size/{side}") or "" for side in ("height", "width")]
    if all(side.strip().isdigit() and int(side) > 0 for side in size):
        return int(size[0]), int(size[1])
    return UNSTATED, UNSTATED  # labelImg writes 0 where it does not know


def _number(box: ElementTree.Element, corner: str, where: str) -> float:
    text = box.findtext(corner)
    try:
        return float(text or "")
    except ValueError:
        raise InputError(f"{where}: {corner} is {text!r}; give a number of px") from None


def _class_names(file: Path, rows: _Rows) -> list[str]:
    """The lines of `file`, or the sorted names in use where it does not exist.

    Raises:
        InputError: a name in use is not in the file.
    """
    if not file.is_file():
        return sorted(set(rows.labels))
    names = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    require_unique(names, lambda i: f"{file}: name {i + 1}")
    known = set(names)
    for j, name in enumerate(rows.labels):
        if name not in known:
            raise InputError(
                f"{rows.place(j)}: name is {name!r}, which {file} does not have; add it"
            )
    return names
