"""Encoded image -> what near-duplicate matching needs of it: SIFT descriptors and a small picture.

SIFT: Lowe 2004, "Distinctive Image Features from Scale-Invariant Keypoints" (IJCV 60). RootSIFT:
Arandjelovic and Zisserman 2012, "Three things everyone should know to improve object retrieval",
section 3. This module and all that it imports stay free of torch: spawned workers import them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ssld.data.decode import decode, image_size

FRAME_PX = 256
"""Longer side at which keypoints are found: 480 px found fewer copies at four times the cost."""
CANDIDATES = 400
"""Strongest keypoints, of which `DESCRIPTORS` are kept. All there are would take a fifth longer and
find a few more of the pictures in a page full of letters (89 instead of 87 %)."""
DESCRIPTORS = 200
"""Kept per image: 300 find more of what is badly mauled at twice the cost of matching."""
CELL_PX = 32
"""Keypoints compete with those of the same cell of the frame: else the lettering of a page or of a
caption takes all places, and the picture beside it has none."""
CONTRAST_THRESHOLD = 0.01
"""OpenCV's SIFT has .04, which leaves smooth pictures bare; the strongest are taken anyway."""
DESCRIPTOR_SCALE = 512
"""Length of a quantised descriptor: the largest entry of a RootSIFT vector is mostly below .5."""
THUMBNAIL_PX = 128
"""Longer side of the small picture: fine enough to tell a shirt from another on the same table."""


@dataclass(frozen=True)
class Features:
    """One image, as matching sees it. Coordinates have (0, 0) at the centre of the first pixel."""

    points: np.ndarray
    """float32 [n, 2]: x, y in px of the frame, best first."""
    descriptors: np.ndarray
    """uint8 [n, 128]: RootSIFT times `DESCRIPTOR_SCALE`."""
    thumbnail: np.ndarray
    """uint8 [h, w]: the whole frame in grey, longer side at most `THUMBNAIL_PX`."""
    frame: tuple[int, int]
    """Width and height in px of the picture in which points are: longer side `FRAME_PX`."""


def features(data: bytes) -> Features:
    """Features of an encoded image; the same bytes always give the same arrays.

    Raises:
        ssld.data.decode.Unreadable: not an image, or a damaged one.
    """
    longer_px = max(image_size(data))
    # A JPEG decodes faster at 1/2, 1/4 or 1/8; twice the frame is left for a clean reduction.
    reduce = next((r for r in (8, 4, 2) if longer_px >= 2 * FRAME_PX * r), 1)
    return features_of(decode(data, reduce=reduce))


def features_of(pixels: np.ndarray) -> Features:
    """Features of decoded pixels, uint8 [h, w, 3]."""
    grey = _within(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), FRAME_PX)
    keypoints, raw = _sift().detectAndCompute(grey, None)  # type: ignore[call-overload]
    points, descriptors = np.zeros((0, 2), np.float32), np.zeros((0, 128), np.uint8)
    if keypoints:
        chosen = _spread(keypoints)[:DESCRIPTORS]
        points = np.array([keypoints[i].pt for i in chosen], np.float32)
        descriptors = root_sift(raw[chosen])
    thumbnail = _within(grey, THUMBNAIL_PX, enlarge=False)
    return Features(points, descriptors, thumbnail, (grey.shape[1], grey.shape[0]))


def root_sift(descriptors: np.ndarray) -> np.ndarray:
    """sqrt(d / |d|_1), a vector of length 1, as uint8 [n, 128] in units of 1 / DESCRIPTOR_SCALE."""
    share = descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-9)
    return np.minimum(np.rint(DESCRIPTOR_SCALE * np.sqrt(share)), 255).astype(np.uint8)


@functools.cache
def _sift() -> cv2.SIFT:
    cv2.setNumThreads(1)  # there is a process per core: more threads make matching ten times slower
    return cv2.SIFT.create(
        nfeatures=CANDIDATES,
        contrastThreshold=CONTRAST_THRESHOLD,
        enable_precise_upscale=True,  # else points lie .25 px too far right, and mirrored ones left
    )


def _spread(keypoints: Sequence[cv2.KeyPoint]) -> np.ndarray:
    """Numbers of the keypoints, best first: by response, divided by the rank within the cell.

    A total order: OpenCV's own breaks ties of response as its threads happen to finish.
    """
    response = np.array([keypoint.response for keypoint in keypoints])
    x, y = np.array([keypoint.pt for keypoint in keypoints]).T
    size, angle = np.array([(keypoint.size, keypoint.angle) for keypoint in keypoints]).T
    cell = (y // CELL_PX) * FRAME_PX + x // CELL_PX
    # rank 1 for the strongest of each cell, 2 for the next: int [n]
    by_cell = np.lexsort((angle, size, y, x, -response, cell))
    _, first, members = np.unique(cell[by_cell], return_index=True, return_counts=True)
    rank = np.empty(len(response))
    rank[by_cell] = 1 + np.arange(len(response)) - np.repeat(first, members)
    return np.lexsort((angle, size, y, x, -response / rank))


def _within(grey: np.ndarray, longer_px: int, enlarge: bool = True) -> np.ndarray:
    """Resized so that the longer side is `longer_px`."""
    height, width = grey.shape
    scale = longer_px / max(height, width)
    if scale == 1 or (scale > 1 and not enlarge):
        return grey
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(grey, size, interpolation=method)
