"""Pictures of a gallery that may have moved since: small JPEGs, or a sentence why there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2

from ssld.curate.near_duplicates.sift import FRAME_PX, Features, features
from ssld.data.decode import Unreadable, decode, image_size
from ssld.report.page import pixels_uri

THUMB_PX = 112
"""Longer side of a picture in a table."""
QUALITY = 75

GONE = (OSError, Unreadable, LookupError, ValueError)
"""What reading an image may raise when the gallery was moved or changed."""

Read = Callable[[str], bytes]


@dataclass(frozen=True)
class Picture:
    """One image as a page shows it."""

    uri: str
    """data: URI; empty where it could not be read."""
    width: int
    height: int
    why: str = ""
    """Why it could not be read."""


class Pictures:
    """Images by location.

    Args:
        read: the bytes of the image at a location; OSError, Unreadable or KeyError if it is gone.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        self.of_frame = lru_cache(512)(self._of_frame)

    def thumbnail(self, location: str) -> Picture:
        """A picture for a table."""
        try:
            return _small(self._read(location), THUMB_PX)
        except GONE as error:
            return Picture("", THUMB_PX, THUMB_PX, _why(error))

    def _of_frame(self, location: str) -> tuple[Picture, Features | None]:
        """A picture whose px are those of the frame in which its features lie."""
        try:
            data = self._read(location)
            picture, seen = _small(data, FRAME_PX), features(data)
        except GONE as error:
            return Picture("", FRAME_PX, FRAME_PX // 2, _why(error)), None
        return Picture(picture.uri, *seen.frame), seen


def _why(error: Exception) -> str:
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"cannot be read now: {' '.join(why.split()) or type(error).__name__}"


def _small(data: bytes, longer_px: int) -> Picture:
    longer = max(image_size(data))
    pixels = decode(data, reduce=next((r for r in (8, 4, 2) if longer >= longer_px * r), 1))
    height, width = pixels.shape[:2]
    scale = longer_px / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    small = cv2.resize(pixels, size, interpolation=method)
    return Picture(pixels_uri(small, "JPEG", quality=QUALITY), *size)
