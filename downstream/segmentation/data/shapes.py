"""Sets of outlines as sets of masks: COCO's polygons and run lengths, labelme's and CVAT's shapes.

Pixels of no shape are the class `background` (the set's own, if it has one of this name or
`_background_`). Of COCO's objects the smaller lie on the larger, as in ultralytics'
`polygons2masks_overlap`, since its file says nothing; of the tools' shapes the later ones lie on
the earlier. An object of COCO's without an outline is ignored within its box: to learn that there
is background would be wrong.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from downstream.dense.coco_json import LISTS, column, file_names, find_images, ids, indices
from downstream.dense.outlines import Outline, read_outline
from downstream.dense.shapes import (
    BACKGROUND,
    IGNORED,
    UNSTATED,
    Rows,
    Shapes,
    polygon,
    rectangle,
    require_near,
    stated_size,
)
from downstream.dense.texts import require_name, require_unique, shown
from downstream.segmentation.data.class_table import (
    IGNORE,
    ClassTable,
    Row,
    find_table,
    read_table,
)
from downstream.segmentation.data.drawn import Drawn
from downstream.segmentation.data.pairing import Pairs
from ssld.common.errors import InputError
from ssld.data.decode import Unreadable, image_size
from ssld.data.folder import FolderSource
from ssld.data.storage import read_all

BACKGROUNDS = ("background", BACKGROUND)
"""Names of what is of no shape."""


def of_coco(
    path: Path, content: dict[str, Any], images: str | None, class_names: list[str] | None
) -> tuple[Pairs, ClassTable]:
    """All images of a COCO json with outlines; its classes are the categories, with their ids.

    Args:
        content: of the file, its outlines read by `keep_outline`.

    Raises:
        InputError: see `read_coco` of detection; most objects have no outline.
    """
    described, annotations, categories = (content[key] for key in LISTS)
    names = file_names(f"{path}: images", described)
    require_unique(names, lambda i: f"{path}: images[{i}].file_name")
    image_ids = ids(f"{path}: images", described, text=True)
    category_ids = ids(f"{path}: categories", categories, text=True)
    classes = [
        require_name(value, f"{path}: categories[{i}].name").strip()
        for i, value in enumerate(column(f"{path}: categories", categories, "name"))
    ]
    require_unique(classes, lambda i: f"{path}: categories[{i}].name")

    def place(j: int) -> str:
        return f"annotations[{j}] (id {shown(annotations[j].get('id'))})"

    image = indices(str(path), annotations, "image_id", image_ids, place)
    category = indices(str(path), annotations, "category_id", category_ids, place)
    rows, without = Rows(), 0
    for j, entry in enumerate(annotations):
        outline = entry.get("segmentation", [])
        where = f"{path}: {place(j)} of image {shown(names[image[j]])}"
        if outline is None:
            raise InputError(
                f"{where}: its segmentation is no outline; give polygons or run lengths"
            )
        label = classes[category[j]]
        if not outline:
            without += 1
            label, outline = IGNORED, _box(entry, where)
        rows.add(image[j], label, (), where, more=outline)
    if 2 * without > len(annotations) or not annotations:
        raise InputError(
            f"{path}: {without} of {len(annotations)} objects have no outline, so that nothing "
            "says which pixels are theirs; give a file that has segmentation, or panoptic_*.json"
        )
    folder, found = find_images(str(path), names, images, lambda i: f"images[{i}].file_name")
    stated = [stated_size(x.get("height"), x.get("width")) for x in described]
    said = (f"objects without an outline, ignored within their box: {without}",) * bool(without)
    shapes = Shapes(str(path), "COCO", folder, found, stated, classes, rows, [str(path)], said)
    numbers = _numbers(category_ids)
    return _pairs(shapes, _table(str(path), classes, numbers, class_names), by_area=True)


def keep_outline(entry: dict[str, Any]) -> dict[str, Any]:
    """In arrays and bytes, which are a tenth of what JSON's numbers are in memory."""
    if "segmentation" in entry:
        entry["segmentation"] = read_outline(entry["segmentation"])
    return entry


def of_shapes(
    shapes: Shapes, folder: Path, class_names: list[str] | None
) -> tuple[Pairs, ClassTable]:
    """Of labelme and CVAT. The classes are those of a class table in `folder`, else the ones that
    the files name or that occur, or `class_names`, which another split had.

    Raises:
        InputError: a shape is of another class.
    """
    file = find_table(folder)
    if file is not None:
        return _pairs(shapes, read_table(file), by_area=False)
    names = shapes.class_names
    if class_names is not None:
        names = [name for name in class_names if name.lower() not in BACKGROUNDS]
    table = _table(shapes.files[0], names, list(range(1, len(names) + 1)), class_names)
    return _pairs(shapes, table, by_area=False)


def _numbers(category_ids: Sequence[Any]) -> list[int]:
    """The ids where they are numbers of a mask, else numbers from 1 on."""
    numbers = [int(x) for x in category_ids if str(x).isdecimal() and int(x) < 2**16]
    fit = len({*numbers}) == len(category_ids)
    return numbers if fit else list(range(1, len(category_ids) + 1))


def _table(
    where: str, names: Sequence[str], numbers: Sequence[int], class_names: list[str] | None
) -> ClassTable:
    """Rows of the classes, behind one of the background where none of them is it."""
    taken = set(numbers)
    rows = [Row(number, name) for number, name in zip(numbers, names, strict=True)]
    if not any(name.lower() in BACKGROUNDS for name in names):
        free = next(i for i in range(2**16) if i not in taken)
        called = next((x for x in class_names or () if x.lower() in BACKGROUNDS), BACKGROUNDS[0])
        rows.insert(0, Row(free, called))
    ignored = next(i for i in [IGNORE, *range(256, 2**16)] if i not in taken | {rows[0].id})
    return ClassTable(tuple(rows), where, (ignored,))


def _pairs(shapes: Shapes, table: ClassTable, by_area: bool) -> tuple[Pairs, ClassTable]:
    number = {row.name: row.id for row in table.rows}
    rest = next((row.id for row in table.rows if row.name.lower() in BACKGROUNDS), None)
    ignored = next(iter(table.ignored), None)
    nothing = ignored if rest is None else rest
    if nothing is None:
        raise InputError(f"{table.where}: has no class background for what is of no shape; add it")
    number = {IGNORED: nothing if ignored is None else ignored, BACKGROUND: nothing, **number}
    parts: list[list[tuple[int, Outline]]] = [[] for _ in shapes.names]
    rows = shapes.rows
    for j, (i, label) in enumerate(zip(rows.image, rows.labels, strict=True)):
        if label not in number:
            raise InputError(
                f"{rows.where[j]}: is of the class {shown(label)}, which {table.where} does not "
                "have; add it, or use sets with the same classes"
            )
        parts[i].append((number[label], rows.more[j]))
    source = FolderSource(shapes.folder)
    place = {source.sample_id(i): i for i in range(len(source))}
    missing = [name for name in shapes.names if os.path.normpath(name) not in place]
    if missing:
        raise InputError(
            f"{shapes.path}: {shown(missing[0])} is no image in {shapes.folder}; complete them"
        )
    numbers = [place[os.path.normpath(name)] for name in shapes.names]
    sizes = [
        size if size[0] != UNSTATED else _size_of(os.path.join(shapes.folder, name))
        for name, size in zip(shapes.names, shapes.stated, strict=True)
    ]
    _require_whole(shapes, sizes)
    drawn = Drawn(sizes, parts, nothing, by_area)
    pairs = Pairs(source, numbers, list(shapes.names), shapes.files[0], files=shapes.files,
                  drawn=drawn, remarks=shapes.remarks)  # fmt: skip
    return pairs, table


def _require_whole(shapes: Shapes, sizes: Sequence[tuple[int, int]]) -> None:
    """
    Raises:
        InputError: run lengths are of another size than their image, by more than a pixel.
    """
    for where, i, outline in zip(
        shapes.rows.where, shapes.rows.image, shapes.rows.more, strict=True
    ):
        size = outline["size"] if isinstance(outline, dict) else sizes[i]
        if max(abs(size[0] - sizes[i][0]), abs(size[1] - sizes[i][1])) > 1:
            raise InputError(
                f"{where}: its run lengths are of height {size[0]} and width {size[1]}, the image "
                f"has {sizes[i][0]} and {sizes[i][1]}; give masks of the whole image"
            )


def _size_of(file: str) -> tuple[int, int]:
    """1, 1 of one that cannot be read, which says so when it is its turn."""
    try:
        return image_size(read_all(file))
    except (OSError, Unreadable):
        return 1, 1


def _box(entry: dict[str, Any], where: str) -> Outline:
    box = entry.get("bbox")
    if isinstance(box, list) and len(box) == 4 and all(type(x) in (int, float) for x in box):
        x, y, width, height = map(float, box)
        return polygon(require_near(rectangle([x, y, x + width, y + height]), where))
    raise InputError(f"{where}: has neither an outline nor a bbox; take it out")
