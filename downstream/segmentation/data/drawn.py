"""Masks that no file has: they are drawn from outlines whenever one is read."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from downstream.dense.outlines import Outline, decode, to_rle


class Drawn:
    """The shapes of all images, as Arrow strings: loader processes share the memory.

    Args:
        sizes: height and width of each image as it was annotated.
        shapes: (id, outline) of each image, from the lowest to the topmost.
        rest: id of the pixels of no shape.
        by_area: whether the smaller shapes lie on the larger instead.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]],
        shapes: Sequence[list[tuple[int, Outline]]],
        rest: int,
        by_area: bool,
    ) -> None:
        self._sizes = np.array(sizes, np.int64).reshape(-1, 2)
        self._shapes = pa.array([json.dumps(list(map(_packed, part))) for part in shapes],
                                pa.large_string())  # fmt: skip
        self._rest = rest
        self._by_area = by_area

    def png(self, i: int) -> bytes:
        """The mask of image i as a grey PNG of ids."""
        size = (int(self._sizes[i, 0]), int(self._sizes[i, 1]))
        areas = []
        for number, outline in json.loads(self._shapes[i].as_py()):
            rle = to_rle(_unpacked(outline), size, 1)
            if rle is not None:
                areas.append((number, decode([rle])[0].astype(bool)))
        if self._by_area:
            areas.sort(key=lambda area: -int(area[1].sum()))
        largest = max([self._rest, *(number for number, _ in areas)])
        mask = np.full(size, self._rest, np.uint8 if largest < 256 else np.uint16)
        for number, area in areas:
            mask[area] = number
        file = io.BytesIO()
        Image.fromarray(mask).save(file, "PNG", compress_level=1)
        return file.getvalue()


def _packed(shape: tuple[int, Outline]) -> tuple[int, Any]:
    number, outline = shape
    if isinstance(outline, dict):
        return number, {"size": outline["size"], "counts": outline["counts"].decode("ascii")}
    return number, [polygon.tolist() for polygon in outline]


def _unpacked(outline: Any) -> Outline:
    if isinstance(outline, dict):
        return {"size": outline["size"], "counts": outline["counts"].encode("ascii")}
    return [np.array(polygon) for polygon in outline]
