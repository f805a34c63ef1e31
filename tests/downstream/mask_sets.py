"""Small sets of masks that several tests share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from downstream.segmentation.data.class_table import voc_colour

TABLE = {
    "classes": [
        {"id": 3, "name": "sky", "colour": "#0000ff"},
        {"id": 0, "name": "road", "colour": [128, 64, 128]},
        {"id": 1, "name": "car", "colour": "255 0 0"},
    ],
    "ignore": [2],
}
NUMBER = {3: 0, 0: 1, 1: 2, 2: 255}
COLOUR = {3: (0, 0, 255), 0: (128, 64, 128), 1: (255, 0, 0), 2: (0, 0, 0)}


def ids(seed=0, shape=(6, 9), values=(0, 1, 2, 3)) -> np.ndarray:
    return np.random.default_rng(seed).choice(values, shape).astype(np.uint8)


def picture(path: Path, shape=(6, 9), orientation: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(1).integers(0, 255, (*shape, 3)).astype(np.uint8)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def folder(root: Path, masks: dict[str, np.ndarray], table=TABLE, split="train") -> str:
    for name, array in masks.items():
        picture(root / "images" / split / f"{name}.jpg", array.shape[:2])
        save(root / "masks" / split / f"{name}.png", array)
    (root / "classes.json").write_text(json.dumps(table))
    return f"{root}::{split}"


def numbers_of(array: np.ndarray) -> np.ndarray:
    return np.array([[NUMBER[x] for x in row] for row in array.tolist()])


def as_palette(array: np.ndarray) -> Image.Image:
    image = Image.fromarray(array).convert("P")
    image.putdata(array.ravel().tolist())
    image.putpalette([c for i in range(256) for c in voc_colour(255 - i)])
    return image
