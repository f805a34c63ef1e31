"""Outlines of objects as files have them (COCO's `segmentation`: polygons or run lengths) and the
masks that they are.

A mask is COCO's compressed run lengths of the upright image. Polygons are drawn by COCO's own
routine (`rleFrPoly` of cocodataset/cocoapi `maskApi.c`, BSD-2-Clause, in faster-coco-eval), so that
a mask has the pixels that COCO's evaluation gives it. That routine trusts what it is given: run
lengths that do not fill their size, lists of four numbers (which it takes for boxes) and polygons
whose edges are as long as its memory are kept from it here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

FARTHEST_PX = 1e5
"""Of an outline's point from the image's corner; no picture has a side that long, and the time and
memory that drawing takes grow with it."""
POINTS = 3
"""The fewest of a polygon."""

Rle = dict[str, Any]
"""{"size": [height, width], "counts": bytes}: COCO's compressed run lengths, column by column."""
Outline = list[np.ndarray] | Rle
"""Polygons, each float64 [2 n]: x, y, x, y, ... in px, of which there may be none, or a mask."""
Extent = list[float]
"""x1, y1, x2, y2 in px."""


def coco_masks() -> Any:
    """faster-coco-eval's routines of masks: a package that what finds boxes does without."""
    from faster_coco_eval import mask

    return mask


def read_outline(value: Any) -> Outline | None:
    """What a file has -> an outline; None where it is none. What has no two dimensions, such as a
    line between two points, is left out.

    Args:
        value: polygons [[x, y, x, y, ...], ...], one polygon, points [[x, y], ...], or {"size",
            "counts"} with counts as a list or as COCO's text; None or an empty list for nothing.
    """
    try:
        return _runs(value) if isinstance(value, dict) and value else _polygons(value or [])
    except (TypeError, ValueError, KeyError, IndexError, OverflowError, MemoryError):
        return None


def _polygons(value: Any) -> list[np.ndarray] | None:
    if not isinstance(value, list):
        return None
    rings = value if value and isinstance(value[0], list) else [value]
    if all(isinstance(ring, list) and len(ring) == 2 for ring in rings):
        rings = [rings]  # points, of one polygon
    polygons = []
    for ring in rings:
        while ring and isinstance(ring[0], list):  # points
            ring = list(chain.from_iterable(ring))
        if not set(map(type, ring)) <= {int, float} or len(ring) % 2:
            return None
        polygon = np.array(ring, np.float64)
        if not (abs(polygon) < FARTHEST_PX).all():
            return None
        if len(polygon) >= 2 * POINTS:
            polygons.append(polygon)
    return polygons


def _runs(value: dict[str, Any]) -> Rle | None:
    height, width = value["size"]
    counts = value["counts"]
    runs = _unpacked(counts) if isinstance(counts, str) else np.array(counts)
    if type(height) is not int or type(width) is not int or runs.dtype.kind != "i":
        return None
    fits = height > 0 and width > 0 and height * width < 2**31
    if not fits or runs.ndim != 1 or (runs < 0).any() or runs.sum() != height * width:
        return None
    return _drawn({"size": [height, width], "counts": runs.tolist()}, (height, width))


def _unpacked(text: str | bytes) -> np.ndarray:
    """Run lengths int64 [n] of COCO's text (`rleFrString` of `maskApi.c`): groups of 5 bits, least
    first, the sixth says that another follows; from the fourth run on, what it is longer than the
    one before the last.

    Raises:
        ValueError: there are none.
    """
    data = text.encode("ascii") if isinstance(text, str) else text
    groups = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    last = groups & 32 == 0
    if not len(groups) or (groups < 0).any() or (groups > 63).any() or not last[-1]:
        raise ValueError("no run lengths")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > 12:
        raise ValueError("no run lengths")
    shifts = 5 * (np.arange(len(groups)) - np.repeat(starts, lengths))
    values = np.add.reduceat((groups & 31) << shifts, starts)
    values -= np.where(groups[ends] & 16 > 0, 1 << 5 * lengths, 0)
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values


def extent(outline: Outline | None) -> Extent | None:
    """The box around an outline; None where it holds nothing."""
    if not outline:
        return None
    if isinstance(outline, list):
        return around(np.concatenate(outline))
    x, y, width, height = coco_masks().toBbox(outline).tolist()
    return [x, y, x + width, y + height] if width and height else None


def around(points: np.ndarray) -> Extent:
    """Of float64 [2 n]: x, y, x, y, ..."""
    x, y = points[::2], points[1::2]
    return [float(x.min()), float(y.min()), float(x.max()), float(y.max())]


def to_rle(outline: Outline, size: tuple[int, int], turn: int, shares: bool = False) -> Rle | None:
    """The mask of an outline, in the upright image; None where it holds no pixel.

    Args:
        outline: of the picture as it was annotated; run lengths of another size are cut or padded.
        size: height and width of that picture.
        turn: EXIF orientation by which it is turned.
        shares: polygons are in shares of the picture's width and height.
    """
    if isinstance(outline, dict):
        same = outline["size"] == list(size)
        rle = outline if same else encode(_fitted(decode([outline])[0], size))
    elif outline:
        scale = np.array(size[::-1], np.float64) if shares else np.ones(2)
        polygons = [(polygon.reshape(-1, 2) * scale).ravel().tolist() for polygon in outline]
        parts = _drawn(polygons, size)
        rle = parts[0] if len(parts) == 1 else coco_masks().merge(parts)
    else:
        return None
    if not coco_masks().area(rle):
        return None
    return rle if turn == 1 else encode(turn_pixels(decode([rle])[0], turn))


def of_box(xyxy: Sequence[float], size: tuple[int, int]) -> Rle:
    """All pixels of a box."""
    x1, y1, x2, y2 = map(float, xyxy)
    return _drawn([[x1, y1, x2, y1, x2, y2, x1, y2]], size)[0]


def _drawn(objects: Any, size: tuple[int, int]) -> Any:
    """A mask of run lengths, masks of polygons."""
    return coco_masks().frPyObjects(objects, *size)


def decode(rles: Sequence[Rle]) -> np.ndarray:
    """uint8 [n, h, w], 0 or 1, of masks of one size; n > 0."""
    return np.ascontiguousarray(coco_masks().decode(list(rles)).transpose(2, 0, 1))


def encode(mask: np.ndarray) -> Rle:
    """Of uint8 [h, w]."""
    return coco_masks().encode(np.asfortranarray(mask))


def _fitted(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    fitted = np.zeros(size, np.uint8)
    height, width = np.minimum(mask.shape, size)
    fitted[:height, :width] = mask[:height, :width]
    return fitted


def placed(pixels: np.ndarray, left: int, top: int, size: tuple[int, int]) -> np.ndarray:
    """uint8 [h, w] of a whole picture, of a part of it, bool, whose corner is given; what lies
    outside is cut."""
    whole = np.zeros(size, np.uint8)
    y, x = max(top, 0), max(left, 0)
    part = pixels[y - top : max(size[0] - top, 0), x - left : max(size[1] - left, 0)]
    whole[y : y + part.shape[0], x : x + part.shape[1]] = part
    return whole


def turn_pixels(mask: np.ndarray, turn: int) -> np.ndarray:
    """Pixels of the stored picture, [h, w] -> of the upright one (EXIF 2.32, tag 0x0112)."""
    turned = mask.T if turn >= 5 else mask
    turned = turned[:, ::-1] if turn in (2, 3, 6, 7) else turned
    return turned[::-1] if turn in (3, 4, 7, 8) else turned
