"""Sixty pictures in three classes of colour below the folder that is given, half of them JPEGs."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

rng = np.random.default_rng(0)
for i in range(60):
    folder = Path(sys.argv[1]) / ("red", "green", "blue")[i % 3]
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.eye(3)[i % 3] * 150 + 50 + rng.normal(0, 40, (61, 75, 3))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    image.save(folder / f"{i}.{'jpg' if i % 2 else 'png'}")
