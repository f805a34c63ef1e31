"""Small sets as the tools of `first_hour.py` have them: rectangles of three colours on noise.

flowers/{train,val}/CLASS/x.jpg          torchvision's ImageFolder
photos/x.jpg, photos/more/x.png, image.jpg
coco8/, coco8.yaml                       Ultralytics: images/, labels/, a YAML with a list of names
coco128_yolo/                            the same without a YAML, as in lightly-train's quick start
coco/                                    COCO: annotations/instances_*2017.json, {train,val}2017/
balloon/{train,val}/annotation_coco.json one class, images beside it, as in mmdetection's guide
my_data_dir/{train,val}/{images,masks}/  lightly-train: masks of class ids
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = ((220, 40, 40), (40, 190, 60), (50, 60, 230))
NAMES = ("person", "bicycle", "car")
SIZE = (96, 128)


@dataclass(frozen=True)
class Scene:
    """An image with one rectangle of each class that is asked for."""

    pixels: np.ndarray
    """uint8 [h, w, 3]."""
    boxes: list[tuple[int, int, int, int, int]]
    """Class and x, y, w, h in px."""


def scene(draw: np.random.Generator, classes: int = 3) -> Scene:
    """Rectangles side by side, so that none hides another."""
    height, width = SIZE
    pixels = draw.integers(90, 150, (height, width, 3)).astype(np.uint8)
    boxes, column = [], width // classes
    for label in range(classes):
        w, h = int(draw.integers(column // 2, column)), int(draw.integers(20, height // 2))
        x, y = label * column, int(draw.integers(0, height - h))
        pixels[y : y + h, x : x + w] = COLOURS[label]
        boxes.append((label, x, y, w, h))
    return Scene(pixels, boxes)


def save(pixels: np.ndarray, file: Path) -> Path:
    """As the ending says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)
    return file


def make(root: Path) -> None:
    """All sets, and a link to the recipes of this checkout."""
    draw = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    if (root / "flowers").exists():
        return
    (root / "configs").symlink_to(Path(__file__).parents[1] / "configs")
    for split, count in (("train", 16), ("val", 8)):
        for label, name in enumerate(("rose", "fern", "iris")):
            for i in range(count):
                pixels = draw.integers(0, 60, (64, 80, 3)) + np.array(COLOURS[label]) * 3 // 4
                save(pixels.astype(np.uint8), root / "flowers" / split / name / f"{i}.jpg")
    for i in range(24):
        save(scene(draw).pixels, root / "photos" / f"{i:03d}.jpg")
    save(scene(draw).pixels, root / "photos" / "more" / "a.png")
    save(scene(draw).pixels, root / "image.jpg")
    _yolo(draw, root / "coco8", ("train", "val"))
    names = "\n".join(f"  {i}: {name}" for i, name in enumerate(NAMES))
    text = f"path: coco8\ntrain: images/train\nval: images/val\nnames:\n{names}\n"
    (root / "coco8.yaml").write_text(text)
    _yolo(draw, root / "coco128_yolo", ("train2017", "val2017"))
    for split in ("train", "val"):
        coco = root / "coco"
        _coco(draw, coco / f"annotations/instances_{split}2017.json", coco / f"{split}2017", 3)
        balloon = root / "balloon" / split
        _coco(draw, balloon / "annotation_coco.json", balloon, 1)
        _masks(draw, root / "my_data_dir" / split)


def _yolo(draw: np.random.Generator, folder: Path, splits: tuple[str, str]) -> None:
    height, width = SIZE
    for split in splits:
        (folder / "labels" / split).mkdir(parents=True)
        for i in range(8):
            one = scene(draw)
            save(one.pixels, folder / "images" / split / f"{i:012d}.jpg")
            text = "".join(
                f"{c} {(x + w / 2) / width:.6f} {(y + h / 2) / height:.6f} {w / width:.6f} "
                f"{h / height:.6f}\n"
                for c, x, y, w, h in one.boxes
            )
            (folder / "labels" / split / f"{i:012d}.txt").write_text(text)


def _coco(draw: np.random.Generator, file: Path, images: Path, classes: int) -> None:
    """Polygons, areas, and category ids with gaps, as COCO's own have."""
    height, width = SIZE
    content: dict[str, list[dict[str, object]]] = {"images": [], "annotations": []}
    for i in range(8):
        one = scene(draw, classes)
        name = save(one.pixels, images / f"{i:012d}.jpg").name
        content["images"] += [{"id": i, "file_name": name, "height": height, "width": width}]
        for c, x, y, w, h in one.boxes:
            corners = [x, y, x + w, y, x + w, y + h, x, y + h]
            facts = {"id": len(content["annotations"]) + 1, "image_id": i, "category_id": 1 + 4 * c}
            shape = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0, "segmentation": [corners]}
            content["annotations"] += [{**facts, **shape}]
    names = ("balloon",) if classes == 1 else NAMES
    content["categories"] = [{"id": 1 + 4 * c, "name": name} for c, name in enumerate(names)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def _masks(draw: np.random.Generator, folder: Path) -> None:
    """0 is the background."""
    for i in range(8):
        one = scene(draw, 2)
        mask = np.zeros(SIZE, np.uint8)
        for c, x, y, w, h in one.boxes:
            mask[y : y + h, x : x + w] = c + 1
        save(one.pixels, folder / "images" / f"image{i}.jpg")
        save(mask, folder / "masks" / f"image{i}.png")
