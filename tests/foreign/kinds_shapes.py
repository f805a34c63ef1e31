"""Shapes as labelme, CVAT and Create ML have them, as boxes and as masks."""

from __future__ import annotations

import base64
import random
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

from kinds_annotations import BOXES, MASKS, NAMES, SIZE, _boxes, _masks, pictures, png
from mutations import NASTY, as_json, changed, encoded
from sandbox import Kind

POINTS = [[2.0, 3.0], [10.0, 3.0], [10.0, 9.0], [2.0, 9.0]]
LABELME: dict[str, Any] = {
    "version": "5.4.1",
    "flags": {},
    "shapes": [
        {"label": "cat", "points": POINTS, "group_id": None, "shape_type": "polygon"},
        {"label": "dog", "points": POINTS[:2], "group_id": 1, "shape_type": "circle"},
        {"label": "dog", "points": POINTS[::2], "group_id": 1, "shape_type": "rectangle"},
        {"label": "cat", "points": [[1, 1], [8, 8]], "shape_type": "mask",
         "mask": base64.b64encode(png("L", 3)).decode()},
        {"label": "cat", "points": POINTS[:1], "shape_type": "point"},
    ],
    "imagePath": "0.png", "imageData": None, "imageHeight": SIZE[0], "imageWidth": SIZE[1],
}  # fmt: skip
CREATE_ML: list[dict[str, Any]] = [
    {"image": name, "verified": False, "annotations": [
        {"label": "cat", "coordinates": {"x": 6.0, "y": 6.0, "width": 8, "height": 6}},
        {"label": "dog", "coordinates": {"x": 12.0, "y": 6.0, "width": 8, "height": 6}}]}
    for name in NAMES[:2]
]  # fmt: skip
COMMON = {"label": "cat", "source": "manual", "occluded": "0", "z_order": "0"}
CVAT: list[tuple[str, dict[str, str]]] = [
    ("box", {**COMMON, "xtl": "2.0", "ytl": "3.0", "xbr": "10.0", "ybr": "9.0"}),
    ("box", {**COMMON, "xtl": "2", "ytl": "3", "xbr": "9", "ybr": "9", "rotation": "30.0"}),
    ("polygon", {**COMMON, "points": "2.0,3.0;10.0,3.0;10.0,9.0"}),
    ("ellipse", {**COMMON, "cx": "9.0", "cy": "8.0", "rx": "5.0", "ry": "3.0"}),
    ("mask", {**COMMON, "rle": "2, 3, 1, 3", "left": "4", "top": "5", "width": "3", "height": "3"}),
    ("points", {**COMMON, "points": "2.0,3.0"}),
    ("tag", {"label": "dog"}),
]
ODD = (*map(str, NASTY), "1e9", "-1e9", "99999999999", "-5", "1e400", "0,0", ";", "1, -1, 9")


def write_labelme(rng: random.Random, folder: Path) -> None:
    pictures(rng, folder, NAMES[:2])
    for name in NAMES[:2]:
        tree = {**LABELME, "imagePath": name}
        tree = changed(rng, tree, rng.choice((1, 1, 3))) if rng.random() < 0.7 else tree
        (folder / name.replace("png", "json")).write_bytes(as_json(rng, tree))
    if rng.random() < 0.1:
        (folder / "labels.txt").write_bytes(encoded(rng, "__ignore__\n_background_\ncat\ndog\n"))


def write_cvat(rng: random.Random, folder: Path) -> None:
    pictures(rng, folder / "images", NAMES[:2])
    images = ""
    for i, name in enumerate(NAMES[:2]):
        fields = {"id": str(i), "name": name, "width": str(SIZE[1]), "height": str(SIZE[0])}
        shapes = "".join(_element(rng, tag, values) for tag, values in CVAT)
        images += _element(rng, "image", fields, shapes)
    labels = "".join(f"<label><name>{name}</name></label>" for name in ("cat", "dog"))
    text = f"<annotations><meta><task><labels>{labels}</labels></task></meta>{images}</annotations>"
    (folder / "annotations.xml").write_bytes(encoded(rng, text))


def _element(rng: random.Random, tag: str, values: dict[str, str], inside: str = "") -> str:
    if rng.random() < 0.04:
        values = {**values, rng.choice(list(values)): rng.choice(ODD)}
    if rng.random() < 0.01:
        values = {key: value for key, value in values.items() if rng.random() < 0.8}
    fields = " ".join(f"{key}={quoteattr(value)}" for key, value in values.items())
    return f"<{tag} {fields}>{inside}</{tag}>"


def write_create_ml(rng: random.Random, folder: Path) -> None:
    pictures(rng, folder, NAMES[:2])
    tree = changed(rng, CREATE_ML) if rng.random() < 0.9 else CREATE_ML
    (folder / "a.json").write_bytes(as_json(rng, tree))


def use_shapes(folder: Path, out: Path) -> str | None:
    file = next(x for x in sorted(folder.rglob("*")) if x.suffix in (".json", ".xml"))
    kind = file.stat().st_size % 3
    return _masks(str(folder), out) if kind == 2 else _boxes(str(folder), out, masks=kind == 1)


def use_create_ml(folder: Path, out: Path) -> str | None:
    return _boxes(str(folder / "a.json"), out)


KINDS = {
    "shapes.labelme": Kind(write_labelme, use_shapes, (*BOXES, *MASKS)),
    "shapes.cvat": Kind(write_cvat, use_shapes, (*BOXES, *MASKS)),
    "shapes.create_ml": Kind(write_create_ml, use_create_ml, BOXES),
}
