"""Boxes and masks drawn on images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ssld.report import plots

GRID_PX = 320
"""Longer side of an image in a grid."""
COLUMNS = 2
"""Pairs in a row of a grid."""
OPACITY = 0.55
"""Of a mask on its image."""


def colour_of(label: int) -> tuple[int, int, int]:
    """The colour of a class where the data does not say one."""
    code = plots.COLOURS[label % len(plots.COLOURS)]
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)


def draw_boxes(
    pixels: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int],
    names: Sequence[str],
    scores: Sequence[float] | None = None,
) -> np.ndarray:
    """A copy of an image with boxes, their classes and, where given, scores.

    Args:
        pixels: uint8 [h, w, 3].
        boxes: float [n, 4] xyxy in px.
    """
    image = Image.fromarray(pixels.copy())
    draw = ImageDraw.Draw(image)
    width = max(1, round(max(image.size) / 250))
    size = max(10, round(max(image.size) / 32))
    font = ImageFont.load_default(size)
    texts = [f" {score:.2f}" for score in scores] if scores is not None else [""] * len(boxes)
    for box, label, score in reversed(list(zip(boxes.tolist(), labels, texts, strict=True))):
        colour = colour_of(label)
        draw.rectangle(box, outline=colour, width=width)
        text = f"{plots.label(names[label])}{score}"
        x, y = box[0], max(0, box[1] - size - 2)
        draw.rectangle(draw.textbbox((x + 1, y), text, font=font), fill=colour)
        draw.text((x + 1, y), text, fill="white", font=font)
    return np.asarray(image)


def draw_lines(pixels: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """A copy of an image, uint8 [h, w, 3], with lines of text in its upper left corner."""
    image = Image.fromarray(pixels.copy())
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(max(10, round(max(image.size) / 28)))
    text = "\n".join(plots.label(line, 60) for line in lines)
    draw.rectangle(draw.multiline_textbbox((4, 4), text, font=font), fill="black")
    draw.multiline_text((4, 4), text, fill="white", font=font)
    return np.asarray(image)


def draw_mask(pixels: np.ndarray, mask: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """A copy of an image with the colours of its classes; pixels of no class stay as they are.

    Args:
        pixels: uint8 [h, w, 3].
        mask: uint8 [h, w], class numbers.
        palette: uint8 [classes, 3].
    """
    known = mask < len(palette)
    colours = palette[np.where(known, mask, 0)]  # [h, w, 3]
    mixed = (1 - OPACITY) * pixels + OPACITY * colours
    return np.where(known[..., None], mixed, pixels).round().astype(np.uint8)


def image_grid(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """uint8 [h, w, 3]: images beside what was found in them, pairs in rows of COLUMNS."""
    cells = [(_shrunk(left), _shrunk(right)) for left, right in pairs]
    height = max(image.shape[0] for cell in cells for image in cell)
    width = max(image.shape[1] for cell in cells for image in cell)
    columns, gap, wide = min(COLUMNS, len(cells)), 4, 16
    rows = -(-len(cells) // columns)
    step = 2 * width + gap + wide
    shape = (rows * (height + wide) - wide, columns * step - wide, 3)
    grid = np.full(shape, 255, np.uint8)
    for i, cell in enumerate(cells):
        top, left = i // columns * (height + wide), i % columns * step
        for j, image in enumerate(cell):
            x = left + j * (width + gap)
            grid[top : top + image.shape[0], x : x + image.shape[1]] = image
    return grid


def _shrunk(pixels: np.ndarray) -> np.ndarray:
    image = Image.fromarray(pixels)
    image.thumbnail((GRID_PX, GRID_PX))
    return np.asarray(image)
