"""Boxes, keypoints and masks drawn on images, and legends of their colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ssld.report import plots

GRID_PX = 320
"""Longer side of an image in a grid."""
COLUMNS = 2
"""Pairs in a row of a grid."""
OPACITY = 0.55
"""Of a mask on its image."""
HIDDEN = 0.15
"""Share of a box that a text may hide."""
LEGEND_FONT_PX = 40
SIDE_COLOURS = {"left": (230, 97, 0), "right": (26, 133, 255), "": (250, 210, 50)}
"""Of keypoints in pairs, orange and blue (told apart by the colour-blind, too), and of others."""


Legend = Sequence[tuple[str, Sequence[int]]]
"""Names and colours, RGB of 0 to 255, of classes by number."""


class Skeleton(Protocol):
    """A `downstream.detection.data.keypoints.Keypoints`."""

    @property
    def skeleton(self) -> Sequence[tuple[int, int]]: ...

    def sides(self) -> list[str]: ...


def colour_of(label: int) -> tuple[int, int, int]:
    """The colour of a class where the data does not say one."""
    code = plots.COLOURS[label % len(plots.COLOURS)]
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)


def legend_of(names: Sequence[str]) -> Legend:
    """Of classes whose colours the data does not say."""
    return [(name, colour_of(i)) for i, name in enumerate(names)]


def draw_boxes(
    pixels: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int],
    names: Sequence[str],
    scores: Sequence[float] | None = None,
) -> np.ndarray:
    """A copy of an image with boxes and, where there is room, their classes and scores: a text that
    would hide a box or another text is left out. The colour says the class, see `with_legend`.

    Args:
        pixels: uint8 [h, w, 3].
        boxes: float [n, 4] xyxy in px.
        scores: of the boxes, the best first, whose texts come first.
    """
    image = Image.fromarray(pixels.copy())
    draw = ImageDraw.Draw(image)
    width = max(1, round(max(image.size) / 250))
    size = max(10, round(max(image.size) / 32))
    font = ImageFont.load_default(size)
    for box, label in reversed(list(zip(boxes.tolist(), labels, strict=True))):
        draw.rectangle(box, outline=colour_of(label), width=width)
    placed = np.zeros((0, 4))
    for i, (box, label) in enumerate(zip(boxes.tolist(), labels, strict=True)):
        text = plots.label(names[label]) + (f" {scores[i]:.2f}" if scores is not None else "")
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        room = np.array([right - left + 2, bottom - top + 2])
        for corner in _text_places(box, room, width):
            area = np.concatenate([corner, corner + room])
            fits = area[:2].min() >= 0 and (area[2:] <= image.size).all()
            if fits and not _overlap(area, placed).any():
                if (_overlap(area, boxes) <= HIDDEN).all():
                    draw.rectangle(area.tolist(), fill=colour_of(label))
                    draw.text((corner + 1 - (left, top)).tolist(), text, fill="white", font=font)
                    placed = np.concatenate([placed, area[None]])
                    break
    return np.asarray(image)


def _text_places(box: Sequence[float], room: np.ndarray, width: int) -> list[np.ndarray]:
    """Upper left corners for a text of that width and height: above the box, below it, inside."""
    left, top, _, bottom = box
    return [np.array([left, y]) for y in (top - room[1] - 1, bottom + 1, top + width)]


def _overlap(area: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Shares of `boxes`, float [n, 4] xyxy, that lie in `area`, [4]; float [n]."""
    sides = np.minimum(area[2:], boxes[:, 2:]) - np.maximum(area[:2], boxes[:, :2])
    sizes = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-6)
    return sides.clip(0).prod(1) / sizes.prod(1)


def with_legend(pixels: np.ndarray, entries: Legend, note: str = "") -> np.ndarray:
    """A picture, uint8 [h, w, 3], with a strip below it that says what its colours are; it becomes
    as wide as the strip needs.

    Args:
        entries: of what is to be seen.
        note: one more line.
    """
    if not entries and not note:
        return pixels
    height, width = pixels.shape[:2]
    size = min(max(11, round(width / 60)), LEGEND_FONT_PX)
    font = ImageFont.load_default(size)
    texts = [(plots.label(name), tuple(colour)) for name, colour in entries]
    wanted = [2.2 * size + font.getlength(text) for text, _ in texts]
    whole = int(max([width, *wanted, font.getlength(note) + size]))
    lines: list[list[tuple[float, str, Any]]] = [[]]
    x = 0.0
    for (text, colour), length in zip(texts, wanted, strict=True):
        if x + length > whole:
            lines.append([])
            x = 0.0
        lines[-1].append((x, text, colour))
        x += length
    rows = len(lines) * bool(texts) + bool(note)
    step = round(1.5 * size)
    picture = Image.new("RGB", (whole, height + rows * step), "white")
    picture.paste(Image.fromarray(pixels))
    draw = ImageDraw.Draw(picture)
    for i, line in enumerate(lines):
        y = height + i * step + step / 2
        for left, text, colour in line:
            draw.rectangle((left + 4, y - size / 2, left + 4 + size, y + size / 2), fill=colour)
            draw.text((left + size + 8, y), text, fill="black", font=font, anchor="lm")
    if note:
        draw.text((4, height + (rows - 0.5) * step), note, fill="black", font=font, anchor="lm")
    return np.asarray(picture)


def draw_keypoints(
    pixels: np.ndarray, points: np.ndarray, keypoints: Skeleton, filled: float = 2.0
) -> np.ndarray:
    """A copy of an image with keypoints and the lines between them, left and right ones in two
    colours.

    Args:
        pixels: uint8 [h, w, 3].
        points: float [n, k, 3]: x, y in px, and a visibility or a score; what has 0 is not drawn.
        filled: from this visibility, or score, on a point is filled; below it is hollow.
    """
    image = Image.fromarray(pixels.copy())
    draw = ImageDraw.Draw(image)
    radius = max(2, round(max(image.size) / 160))
    sides = keypoints.sides()
    for one in points.tolist():
        for a, b in keypoints.skeleton:
            if one[a][2] > 0 and one[b][2] > 0:
                side = {sides[a], sides[b]} - {""}
                colour = SIDE_COLOURS[side.pop() if len(side) == 1 else ""]
                draw.line([*one[a][:2], *one[b][:2]], fill=colour, width=max(1, radius // 2))
        for (x, y, sure), side in zip(one, sides, strict=True):
            if sure > 0:
                draw.circle((x, y), radius + 1, fill="black")
                fill = SIDE_COLOURS[side] if sure >= filled else "white"
                draw.circle((x, y), radius, fill, SIDE_COLOURS[side], max(1, radius // 2))
    return np.asarray(image)


def draw_instances(
    pixels: np.ndarray,
    masks: np.ndarray | Sequence[Mapping[str, Any]],
    labels: Sequence[int],
) -> np.ndarray:
    """A copy of an image with the masks of objects in the colours of their classes, and a line
    around each.

    Args:
        pixels: uint8 [h, w, 3].
        masks: uint8 or bool [n, h, w], or COCO's run lengths of n masks; of another size they are
            shown at that of `pixels`.
    """
    drawn = pixels.astype(np.float64)
    for mask, label in reversed(list(zip(_arrays(masks), labels, strict=True))):
        if mask.shape != pixels.shape[:2]:
            mask = Image.fromarray(mask).resize(pixels.shape[1::-1], Image.Resampling.NEAREST)
        inside = np.asarray(mask) > 0
        colour = np.array(colour_of(label), np.float64)
        drawn[inside] = (1 - OPACITY) * drawn[inside] + OPACITY * colour
        drawn[inside & ~_eroded(inside)] = colour
    return drawn.round().astype(np.uint8)


def _arrays(masks: np.ndarray | Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
    if isinstance(masks, np.ndarray):
        return [mask.astype(np.uint8) for mask in masks]
    from faster_coco_eval import mask as coco_masks  # only detection needs it

    return [coco_masks.decode(dict(mask)) for mask in masks]


def _eroded(inside: np.ndarray) -> np.ndarray:
    """bool [h, w]: with its four neighbours inside, too; what is beyond the image is."""
    padded = np.pad(inside, 1, mode="edge")
    sides = [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
    return np.logical_and.reduce(sides)


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
