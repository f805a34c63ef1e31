"""A mask's PNG -> ids, and ids -> class numbers."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError

from downstream.segmentation.data.class_table import IGNORE
from ssld.common.errors import one_line
from ssld.data.decode import MAX_PIXELS, Unreadable

UNKNOWN = 254
"""A pixel whose id has no class and is not ignored; never handed out."""


def open_png(data: bytes) -> Image.Image:
    """The decoded PNG, in the mode that its file has.

    Its EXIF orientation, if it has one, is not applied: a mask lies as its array does.

    Raises:
        Unreadable: empty, truncated, damaged or no PNG.
    """
    if not data:
        raise Unreadable("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=("PNG",))
            if image.height * image.width > MAX_PIXELS:
                raise Unreadable(f"{image.width} x {image.height} px is taken for a bomb")
            image.load()
    except UnidentifiedImageError as error:
        raise Unreadable("not a PNG") from error
    except (OSError, ValueError, SyntaxError, IndexError, struct.error, zlib.error) as error:
        raise Unreadable(one_line(error)) from error
    except Image.DecompressionBombError as error:
        raise Unreadable(str(error)) from error
    return image


def ids_of(image: Image.Image, data: bytes) -> np.ndarray:
    """Ids as uint8 or uint16 [h, w]: the index of a palette PNG, the value of a grey one.

    Args:
        data: the file; of 2 and 4 bits a pixel Pillow gives shades (id 3 of 4 bits is 51), so the
            header's bit depth and colour type are looked up (PNG specification, 11.2.1: bytes 24
            and 25).
    """
    if image.mode in ("I", "I;16", "I;16B"):
        return np.asarray(image).astype(np.uint16)
    ids = np.asarray(image.getchannel(0) if image.mode == "LA" else image).astype(np.uint8)
    depth, kind = data[24], data[25]
    return ids // (255 // (2**depth - 1)) if kind == 0 and depth in (2, 4) else ids


def colours_of(image: Image.Image) -> np.ndarray:
    """Red + 256 green + 256² blue as uint32 [h, w]; alpha is dropped."""
    rgba = np.asarray(image.convert("RGBA"))  # uint8 [h, w, 4], read as one number a pixel
    return rgba.view("<u4")[..., 0] & 0xFFFFFF


def grey_of(image: Image.Image) -> np.ndarray | None:
    """The ids of a grey mask that was saved as RGB, uint8 [h, w]; None where it has colours."""
    pixels = np.asarray(image.convert("RGB"))
    red = pixels[..., 0]
    return red if (pixels == red[..., None]).all() else None


def pack(colour: tuple[int, int, int]) -> int:
    """A colour as `colours_of` has it."""
    return colour[0] + 256 * colour[1] + 256**2 * colour[2]


def hex_colour(value: int) -> str:
    """A packed colour as #rrggbb."""
    return f"#{value & 255:02x}{value >> 8 & 255:02x}{value >> 16:02x}"


def wrong_size(mask: tuple[int, ...], image: tuple[int, ...]) -> str:
    """What is wrong with a mask [h, w] that does not fit its upright image [h, w]."""
    hint = "turn it with the image" if mask == tuple(image)[::-1] else "save it at the image's size"
    return (
        f"size is {mask[0]} x {mask[1]} px (height x width), that of the upright image is "
        f"{image[0]} x {image[1]}: {hint}"
    )


class IdMap:
    """Ids -> class numbers.

    Args:
        ids: distinct, [n], in any order.
        numbers: class number or IGNORE of each, [n].
    """

    def __init__(self, ids: np.ndarray, numbers: np.ndarray) -> None:
        order = np.argsort(ids)
        self._ids = np.asarray(ids, np.uint32)[order]
        self._numbers = np.asarray(numbers, np.uint8)[order]
        self._bytes = np.full(256, UNKNOWN, np.uint8)
        small = self._ids < 256
        self._bytes[self._ids[small]] = self._numbers[small]

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Class numbers, uint8 [h, w]; IGNORE where ignored, UNKNOWN where there is no such id."""
        if ids.dtype == np.uint8:
            return np.take(self._bytes, ids)
        if not len(self._ids):
            return np.full(ids.shape, UNKNOWN, np.uint8)
        # Ids of 16 and 24 bits by binary search: a table of all has 16 million entries.
        place = np.searchsorted(self._ids, ids).clip(max=len(self._ids) - 1)
        return np.where(self._ids[place] == ids, self._numbers[place], np.uint8(UNKNOWN))


def ignoring(ids: list[int], numbers: list[int], ignored: list[int]) -> IdMap:
    """The map of `ids` to `numbers` and of `ignored` to IGNORE."""
    return IdMap(np.array(ids + ignored), np.array(numbers + [IGNORE] * len(ignored)))
