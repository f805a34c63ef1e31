"""The box around an outline: polygons, and run lengths as COCO has them.

The run lengths are those of pycocotools' common/maskApi.c: of a mask read column by column,
alternately outside and inside; as a string each is written in 5-bit groups, lowest first, from the
third on as the difference to the one before the last.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np

Extent = list[float]
"""x1, y1, x2, y2 in px."""


def extent(outline: Any) -> Extent | None:
    """Of COCO's `segmentation`; None where it is none, or holds nothing.

    Args:
        outline: polygons [[x, y, x, y, ...], ...], one polygon, or {"size", "counts"}.
    """
    try:
        return _of_runs(outline) if isinstance(outline, dict) else _of_polygons(outline)
    except (TypeError, ValueError, KeyError, IndexError, OverflowError, MemoryError):
        return None


def _of_polygons(outline: list[Any]) -> Extent | None:
    while outline and isinstance(outline[0], list):  # polygons, or points of their own
        outline = list(chain.from_iterable(outline))
    if not set(map(type, outline)) <= {int, float} or len(outline) % 2 or len(outline) < 6:
        return None
    return around(np.array(outline, np.float64))


def around(points: np.ndarray) -> Extent:
    """Of float64 [2 n]: x, y, x, y, ..."""
    x, y = points[::2], points[1::2]
    return [float(x.min()), float(y.min()), float(x.max()), float(y.max())]


def _of_runs(outline: dict[str, Any]) -> Extent | None:
    height, width = outline["size"]
    counts = outline["counts"]
    runs = np.array(_unpacked(counts) if isinstance(counts, str) else counts)
    if type(height) is not int or type(width) is not int or runs.dtype.kind != "i":
        return None
    ends = runs.cumsum()
    if (runs < 0).any() or ends[-1] != height * width:
        return None
    first, last = ends[:-1:2], ends[1::2] - 1  # of the runs inside, as far as there are any
    inside = last >= first[: len(last)]
    first, last = first[: len(last)][inside], last[inside]
    if not len(first):
        return None
    left, right = int(first[0]) // height, int(last[-1]) // height + 1
    if ((first // height) != (last // height)).any():  # one goes on in the next column
        return [float(left), 0.0, float(right), float(height)]
    top, bottom = int((first % height).min()), int((last % height).max()) + 1
    return [float(left), float(top), float(right), float(bottom)]


def _unpacked(text: str) -> list[int]:
    counts: list[int] = []
    value = shift = 0
    for letter in text.encode("ascii"):
        group = letter - 48
        if not 0 <= group < 64 or shift > 60:
            raise ValueError("no run lengths")
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            if group & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("no run lengths")
    return counts
