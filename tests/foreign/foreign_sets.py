"""Small annotated sets as strangers' tools write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (90, 120)
"""Height and width of every picture, px."""


def picture(path: Path, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 200, np.uint8)).save(path)
    return path


def coco(
    root: Path, annotations: list[dict], *, sizes: bool = True, n: int = 6, **more: Any
) -> str:
    """a.json and images/im0.jpg ...; one category, id 1."""
    for i in range(n):
        picture(root / f"images/im{i}.jpg")
    stated = {"width": SIZE[1], "height": SIZE[0]} if sizes else {}
    content = {
        "images": [{"id": i, "file_name": f"im{i}.jpg", **stated} for i in range(n)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "fish"}],
        **more,
    }
    (root / "a.json").write_text(json.dumps(content))
    return str(root / "a.json")


def box(i: int, bbox: Any, **more: Any) -> dict:
    return {"id": i, "image_id": i % 6, "category_id": 1, "bbox": bbox, **more}


def yolo(root: Path, lines: str, yaml: str = "names: [fish]\n", splits=("train", "val")) -> Path:
    for split in splits:
        for i in range(6):
            picture(root / f"images/{split}/im{i}.jpg")
            label = root / f"labels/{split}/im{i}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(lines)
    (root / "data.yaml").write_text(yaml)
    return root


XML = (
    "<annotation><filename>{image}</filename><size><width>120</width><height>90</height></size>"
    "<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{box[0]}</xmin>"
    "<ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object></annotation>"
)


def xml(
    name: str = "fish", image: str = "a.jpg", difficult: str = "0", box=(10, 10, 50, 60)
) -> str:
    return XML.format(name=name, image=image, difficult=difficult, box=box)
