"""Small scenes with coloured rectangles, with boxes as COCO json and masks as PNG."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (230, 30, 30), "green": (30, 200, 60), "blue": (40, 50, 240)}
SIZES = ((64, 64), (48, 80), (80, 64))


def make_scenes(root: Path, *, train: int = 6, val: int = 5, seed: int = 0) -> Path:
    """images/{train,val}, masks/{train,val} with classes.json, and train.json, val.json."""
    draw = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        images, annotations = [], []
        for folder in ("images", "masks"):
            (root / folder / split).mkdir(parents=True)
        for i in range(count):
            height, width = SIZES[i % len(SIZES)]
            pixels = draw.integers(90, 140, (height, width, 3)).astype(np.uint8)
            mask = np.zeros((height, width), np.uint8)
            for label in draw.permutation(3)[:2]:
                w, h = (int(draw.integers(side // 4, side // 2)) for side in (width, height))
                x, y = int(draw.integers(0, width - w)), int(draw.integers(0, height - h))
                if mask[y : y + h, x : x + w].any():
                    continue
                pixels[y : y + h, x : x + w] = list(COLOURS.values())[label]
                mask[y : y + h, x : x + w] = label + 1
                box = {"bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
                number = len(annotations) + 1
                annotations.append(
                    {"id": number, "image_id": 5 * i + 3, "category_id": 2 * int(label) + 7, **box}
                )
            name = f"{split}{i}.png"
            images.append({"id": 5 * i + 3, "file_name": name, "height": height, "width": width})
            Image.fromarray(pixels).save(root / "images" / split / name)
            Image.fromarray(mask).save(root / "masks" / split / name)
        categories = [{"id": 2 * i + 7, "name": name} for i, name in enumerate(COLOURS)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"{split}.json").write_text(json.dumps(content))
    rows = [{"id": 0, "name": "ground", "colour": "#777777"}]
    rows += [
        {"id": i + 1, "name": name, "colour": list(colour)}
        for i, (name, colour) in enumerate(COLOURS.items())
    ]
    (root / "classes.json").write_text(json.dumps(rows))
    return root


def boxes(root: Path, split: str) -> str:
    """What a user types for the boxes of a split."""
    return f"{root / split}.json::{root / 'images' / split}"
