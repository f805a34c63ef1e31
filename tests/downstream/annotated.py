"""Small annotated sets, written as the tools of each format write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# What a camera did to get from the upright picture to the stored one, by EXIF orientation.
STORE = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def canvas(height: int, width: int) -> np.ndarray:
    """White, uint8 [h, w, 3]."""
    return np.full((height, width, 3), 255, np.uint8)


def save(path: Path, pixels: np.ndarray, orientation: int = 1) -> np.ndarray:
    """Write a PNG whose upright picture is `pixels` -> the stored pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image, way = Image.fromarray(pixels), STORE[orientation]
    image = image if way is None else image.transpose(way)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, **({"exif": exif} if orientation > 1 else {}))
    return np.asarray(image)


def around(pixels: np.ndarray) -> list[int]:
    """x1, y1, x2, y2 of all that is not white, [h, w, 3], or is true, [h, w]."""
    there = pixels if pixels.ndim == 2 else (pixels != 255).any(2)
    rows, columns = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def coco(
    folder: Path,
    boxes: list[tuple[int, int, list[Any]]],
    *,
    sizes: list[tuple[int, int]] | None = None,
    categories: dict[int, str] | None = None,
    **changes: Any,
) -> Path:
    """A json and its images beside it.

    Args:
        boxes: image id, category id, bbox of each annotation.
        sizes: height and width of each image; their ids are 10, 20, 30, ...
        categories: names by id.
        changes: whole entries of the json instead of these.
    """
    sizes = sizes or [(40, 60), (60, 40), (50, 50)]
    names = categories or {3: "cat", 7: "dog", 90: "bird"}
    for i, size in enumerate(sizes):
        save(folder / f"{i}.png", canvas(*size))
    content = {
        "images": [
            {"id": 10 * (i + 1), "file_name": f"{i}.png", "height": h, "width": w}
            for i, (h, w) in enumerate(sizes)
        ],
        "annotations": [
            {"id": 100 + j, "image_id": image, "category_id": category, "bbox": bbox, "iscrowd": 0}
            for j, (image, category, bbox) in enumerate(boxes)
        ],
        "categories": [{"id": number, "name": name} for number, name in names.items()],
    }
    path = folder / "boxes.json"
    path.write_text(json.dumps({**content, **changes}))
    return path


PART_SIZES = [(40, 60), (60, 40), (50, 50)]
PART_BOXES = [(4, 6, 24, 30), (8, 10, 30, 50), (20, 20, 45, 40)]  # x1, y1, x2, y2, one an image


def coco_parts(folder: Path, names: list[str]) -> str:
    """A json and its three images, each with one object: three keypoints (visible, hidden, and in
    its upper left corner one that the first object lacks) and an outline like its box.

    Args:
        names: of the keypoints.
    """
    annotations = []
    for i, (x1, y1, x2, y2) in enumerate(PART_BOXES):
        pixels = canvas(*PART_SIZES[i])
        pixels[y1:y2, x1:x2] = (200, 40, 40)
        save(folder / f"{i}.png", pixels)
        x, y, w, h = x1, y1, x2 - x1, y2 - y1
        points = [[x + w // 4, y + h // 4, 2], [x + w // 2, y + h // 2, 1], [x, y, 2 * (i > 0)]]
        annotations.append(
            {
                "id": i + 1, "image_id": 10 + i, "category_id": 5, "bbox": [x, y, w, h],
                "area": w * h, "iscrowd": 0, "keypoints": sum(points, []),
                "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
            }
        )  # fmt: skip
    images = [
        {"id": 10 + i, "file_name": f"{i}.png", "height": h, "width": w}
        for i, (h, w) in enumerate(PART_SIZES)
    ]
    categories = [{"id": 5, "name": "cat", "keypoints": names, "skeleton": [[1, 2]]}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "set.json").write_text(json.dumps(content))
    return str(folder / "set.json")


def edit(path: Path, part: str, row: int, **values: Any) -> Path:
    """Change one entry of a json; `...` deletes a key."""
    content = json.loads(path.read_text())
    for key, value in values.items():
        content[part][row][key] = value
        if value is ...:
            del content[part][row][key]
    path.write_text(json.dumps(content))
    return path


VOC_OBJECT = (
    "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin>"
    "<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def voc(root: Path, objects: dict[str, list[tuple]], size: tuple[int, int] = (40, 60)) -> Path:
    """Annotations/ and JPEGImages/; an object is name, difficult, xmin, ymin, xmax, ymax."""
    (root / "Annotations").mkdir(parents=True)
    for stem, entries in objects.items():
        save(root / "JPEGImages" / f"{stem}.png", canvas(*size))
        inside = "".join(VOC_OBJECT.format(*entry) for entry in entries)
        (root / "Annotations" / f"{stem}.xml").write_text(
            f"<annotation><size><width>{size[1]}</width><height>{size[0]}</height></size>"
            f"{inside}</annotation>"
        )
    return root


def yolo(root: Path, lines: dict[str, str | None], size: tuple[int, int] = (40, 60)) -> Path:
    """images/train, labels/train and data.yaml; None writes no label file."""
    (root / "labels" / "train").mkdir(parents=True)
    for stem, text in lines.items():
        save(root / "images" / "train" / f"{stem}.png", canvas(*size))
        if text is not None:
            (root / "labels" / "train" / f"{stem}.txt").write_text(text)
    (root / "data.yaml").write_text("names: [cat, dog]\nnc: 2\n")
    return root
