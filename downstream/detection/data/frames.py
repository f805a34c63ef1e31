"""In which frame the boxes are: image headers against what the annotations state.

Cameras store a picture as the sensor lay and note in EXIF how to turn it. Our images are upright
(`ssld/data/decode.py`); tools that drew the boxes saw the upright or the stored picture, and many
do not say which. An image whose sides differ and that is turned by a quarter tells by its stated
size. One that does not (half turns, mirrors, squares, no size) follows the majority of those that
do, and is upright where none does: browsers, OpenCV and ultralytics show pictures so. A stated size
that is neither the stored nor the upright one, give or take a pixel, is an error: the boxes belong
to another picture.

All headers are read before the first step, by threads: the first 128 KiB of each JPEG and PNG.
Measured on 118,000 JPEGs (COCO train2017 has as many) in the page cache: 9 s on one core. A
later look could not tell the majority, and would find a wrong size after hours.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from ssld.common.errors import InputError, one_line
from ssld.common.streams import bar_output
from ssld.data.decode import Unreadable, image_size, orientation_of

HEAD_BYTES = 1 << 17
"""Bytes: EXIF lies in the first 64 KiB or is not looked for, and is 64 KiB at most."""
THREADS = 16
CHUNK = 64


@dataclass(frozen=True)
class Headers:
    """Of n images."""

    upright: np.ndarray
    """int64 [n, 2]: height and width; 0 where unreadable."""
    turns: np.ndarray
    """int64 [n]: EXIF orientation, 1 to 8."""
    unreadable: dict[int, str]
    """Reasons by number."""

    @property
    def stored(self) -> np.ndarray:
        """int64 [n, 2]."""
        return np.where((self.turns >= 5)[:, None], self.upright[:, ::-1], self.upright)


@dataclass(frozen=True)
class Frames:
    """What was decided."""

    sizes: np.ndarray
    """int64 [n, 2]: height and width of the upright image; 0 where nothing is known."""
    turns: np.ndarray
    """int64 [n]: EXIF orientation by which the annotations must be turned, else 1."""
    lines: list[str]
    """What the report says."""


def read_headers(folder: str, names: Sequence[str]) -> Headers:
    """Size and orientation of every image, with a progress bar where it takes long."""
    starts = range(0, len(names), CHUNK)
    upright, turns = np.zeros((len(names), 2), np.int64), np.ones(len(names), np.int64)
    unreadable: dict[int, str] = {}

    def read(start: int) -> int:
        chunk = range(start, min(start + CHUNK, len(names)))
        for i in chunk:
            try:
                upright[i], turns[i] = _header(os.path.join(folder, names[i]))
            except (OSError, Unreadable) as error:
                unreadable[i] = one_line(error)
        return len(chunk)

    progress = tqdm(
        total=len(names),
        unit="img",
        desc="headers",
        delay=2,
        leave=False,
        **bar_output(),
    )
    with progress, ThreadPoolExecutor(THREADS) as pool:
        for count in pool.map(read, starts):
            progress.update(count)
    return Headers(upright, turns, dict(sorted(unreadable.items())))


def _header(path: str) -> tuple[tuple[int, int], int]:
    with open(path, "rb") as file:
        data = file.read(HEAD_BYTES)
        short = data[:2] == b"\xff\xd8" or data[:4] == b"\x89PNG"
        if not short:  # WebP has its EXIF at the end, TIFF its header anywhere
            data += file.read()
        try:
            return image_size(data), orientation_of(data)
        except Unreadable:
            if not short or len(data) < HEAD_BYTES:
                raise
            data += file.read()
            return image_size(data), orientation_of(data)


def decide_frames(path: str, names: Sequence[str], headers: Headers, stated: np.ndarray) -> Frames:
    """Compare with the sizes that the annotations state, int64 [n, 2], below 0 where they do not.

    Raises:
        InputError: a size is neither the stored nor the upright one; naming the first such image.
    """
    readable, told = (np.all(x > 0, axis=1) for x in (headers.upright, stated))
    as_stored = np.all(stated == headers.stored, axis=1)
    as_upright = np.all(stated == headers.upright, axis=1)
    far = [np.any(abs(stated - x) > 1, axis=1) for x in (headers.stored, headers.upright)]
    wrong = np.flatnonzero(readable & told & far[0] & far[1])
    if len(wrong):
        i, others = int(wrong[0]), len(wrong) - 1
        (height, width), (h, w) = stated[i].tolist(), headers.stored[i].tolist()
        raise InputError(
            f"{path}: width and height of image {names[i]!r} are {width} and {height}, but its "
            f"file has {w} and {h} px"
            + (f" (and {others} more images differ)" if others else "")
            + "; give the images that were annotated"
        )
    turned = readable & (headers.turns > 1)
    # An image tells its frame where exactly one of the two sizes fits: quarter turns, sides differ.
    clear = turned & told & (as_stored ^ as_upright)
    stored, upright = int((clear & as_stored).sum()), int((clear & as_upright).sum())
    unclear = turned & ~clear
    to_turn = clear & as_stored
    if stored > upright:  # the rest follows the majority of those that tell
        to_turn = to_turn | unclear
    lines = _describe(int(turned.sum()), stored, upright, int(unclear.sum()))
    off = int((readable & told).sum() - (readable & told & (as_stored | as_upright)).sum())
    if off:
        lines.append(f"the stated size of {off} images is off by 1 px: taken from the files")
    unstated = int((readable & ~told).sum())
    if told.any() and unstated:
        lines.append(f"{unstated} images have no stated size: taken from the files")
    sizes = np.where(readable[:, None], headers.upright, np.where(told[:, None], stated, 0))
    return Frames(sizes, np.where(to_turn, headers.turns, 1), lines)


def _describe(turned: int, stored: int, upright: int, unclear: int) -> list[str]:
    if not turned:
        return []
    parts = [f"orientation: {turned} images are turned or mirrored by EXIF"]
    if upright:
        parts.append(f"{upright} were annotated upright")
    if stored:
        parts.append(f"{stored} were annotated as stored: their boxes are turned with them")
    if unclear:
        taken = "as stored, like most of the others" if stored > upright else "upright"
        parts.append(f"the size of {unclear} does not tell: their boxes are taken {taken}")
    return ["; ".join(parts)]


def turn_points(points: np.ndarray, turns: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Points of the stored picture -> of the upright one, as `decode` turns pixels (EXIF 2.32, tag
    0x0112).

    Args:
        points: float64 [m, ..., 2], x and y in continuous px of the stored picture.
        turns: int64 [m], orientation of each.
        sizes: int64 [m, 2], height and width of the upright picture.
    """
    extra = (1,) * (points.ndim - 2)
    turns = turns.reshape(-1, *extra)
    height, width = sizes[:, 0].reshape(-1, *extra), sizes[:, 1].reshape(-1, *extra)
    swap = turns >= 5
    x = np.where(swap, points[..., 1], points[..., 0])
    y = np.where(swap, points[..., 0], points[..., 1])
    x = np.where(np.isin(turns, (2, 3, 6, 7)), width - x, x)
    y = np.where(np.isin(turns, (3, 4, 7, 8)), height - y, y)
    return np.stack([x, y], axis=-1)


def turn_boxes(xyxy: np.ndarray, turns: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The same for boxes, float64 [m, 4]; a degenerate box stays one."""
    if (turns == 1).all():
        return xyxy
    first = turn_points(xyxy[:, None, :2], turns, sizes)[:, 0]
    second = turn_points(xyxy[:, None, 2:], turns, sizes)[:, 0]
    # Each side of the corners must keep its sign: low and high change places where it is mirrored.
    mirrored = np.stack([np.isin(turns, (2, 3, 6, 7)), np.isin(turns, (3, 4, 7, 8))], axis=1)
    low, high = np.where(mirrored, second, first), np.where(mirrored, first, second)
    return np.concatenate([low, high], axis=1)
