"""Bytes of an image file -> uint8 RGB pixels, upright, or the reason why not.

JPEGs in colour or grey take a fast path (libjpeg-turbo through simplejpeg, which also decodes at
1/2, 1/4 or 1/8 size); everything else goes through Pillow. Alpha is dropped, as `convert("RGB")`
does in timm and torchvision, for which published weights were trained and tested.

Whatever a decoder raises is one unreadable image: Pillow's plugins meet damaged files with any
exception. Memory is bounded before a pixel is decoded: an image may have MAX_PIXELS, and more than
SMALL_PIXELS only with a byte for every PIXELS_PER_BYTE of them, which photographs exceed tenfold
and bombs of a few bytes do not. The result takes 3 bytes per px; while it is made, a JPEG takes no
more, formats that Pillow reads take 7 (11 below STRIP_PIXELS), WebP 11 and JPEG 2000 up to 19:
below 1 GB for any file of less than 1 MB.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ssld.common.errors import Interrupted, one_line

simplejpeg: Any
try:
    import simplejpeg
except ModuleNotFoundError:  # Pillow reads them, too, with other pixels where its libjpeg differs
    simplejpeg = None

MAX_PIXELS = 400_000_000
"""Larger images are taken for decompression bombs."""
SMALL_PIXELS = 40_000_000
"""So many px are decoded however small the file is."""
PIXELS_PER_BYTE = 50
"""Larger images with more px for each byte of the file are taken for decompression bombs, too. A
photograph has 5 to 20; a page of 600 dpi in black and white with hardly any ink has 100."""
STRIP_PIXELS = 8_000_000
"""Larger images are converted to RGB strip by strip, which is slower and takes less memory."""


class Unreadable(Exception):
    """An image that cannot be read; the message is the reason.

    Args:
        index: its number in the source, where another image was asked for, of which it is a part.
    """

    def __init__(self, reason: str, index: int | None = None) -> None:
        super().__init__(reason, index)
        self.index = index

    def __str__(self) -> str:
        return self.args[0]


def image_size(data: bytes) -> tuple[int, int]:
    """Height and width in px after EXIF rotation, from the header alone.

    Raises:
        Unreadable: not an image.
    """
    height, width = _stored_size(data)
    return (width, height) if orientation_of(data) >= 5 else (height, width)


def decode(data: bytes, reduce: int = 1) -> np.ndarray:
    """Pixels as uint8 [h, w, 3], RGB, upright.

    Args:
        reduce: 1, 2, 4 or 8: a JPEG may be decoded at 1/reduce of its size (rounded up); other
            formats come at full size.

    Raises:
        Unreadable: empty, truncated, damaged or not an image.
    """
    if simplejpeg is None:
        pixels = _decode_any(data, reduce)
    elif data[:2] == b"\xff\xd8" and _jpeg_header(data)[2] in ("YCbCr", "Gray"):
        pixels = _decode_jpeg(data, reduce)
    else:
        pixels = _decode_any(data)
    return _upright(pixels, orientation_of(data))


def _stored_size(data: bytes) -> tuple[int, int]:
    """Height and width in px as they are stored; of a file or of its beginning."""
    if simplejpeg is not None and data[:2] == b"\xff\xd8":
        height, width, _ = _jpeg_header(data)
        _refuse_bomb(height, width)
        return height, width
    with _decoding(data), _open(data) as image:
        return image.height, image.width


def _jpeg_header(data: bytes) -> tuple[int, int, str]:
    """Height, width and colour space."""
    try:
        height, width, space = simplejpeg.decode_jpeg_header(data)[:3]
        return int(height), int(width), space
    except ValueError as error:
        raise Unreadable(_reason(data, error)) from error


def _decode_jpeg(data: bytes, reduce: int) -> np.ndarray:
    height, width = _stored_size(data)
    _refuse_dense(height, width, data)
    try:
        if reduce == 1:
            return simplejpeg.decode_jpeg(data)
        return simplejpeg.decode_jpeg(
            data,
            min_height=math.ceil(height / reduce),
            min_width=math.ceil(width / reduce),
            min_factor=reduce,
        )
    except ValueError as error:
        if "extraneous bytes" in str(error):  # libjpeg skips them; the picture is whole
            return _decode_any(data)
        raise Unreadable(_reason(data, error)) from error


def _decode_any(data: bytes, reduce: int = 1) -> np.ndarray:
    with _decoding(data), _open(data) as image:
        _refuse_dense(image.height, image.width, data)
        if reduce > 1 and image.format == "JPEG" and image.mode in ("L", "RGB"):
            image.draft(None, (max(1, image.width // reduce), max(1, image.height // reduce)))
        stated = image.size
        image.load()
        if image.size != stated:  # icons hold images of other sizes than they say
            (w, h), (width, height) = stated, image.size
            raise Unreadable(f"says {w} x {h} px, and has {width} x {height}")
        if image.mode == "F":
            raise Unreadable("floating-point pixels have no known range")
        rows = image.height
        if image.height * image.width > STRIP_PIXELS:
            rows = max(1, STRIP_PIXELS // 4 // image.width)
        if rows == image.height:
            return _rgb(image)
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        for top in range(0, image.height, rows):
            strip = image.crop((0, top, image.width, min(top + rows, image.height)))
            pixels[top : top + rows] = _rgb(strip)
        return pixels


def _rgb(image: Image.Image) -> np.ndarray:
    """Pixels as uint8 [h, w, 3]; each depends on itself alone."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        # Pillow would clip at 255; 65535 / 255 = 257.
        grey = (np.asarray(image).astype(np.int64).clip(0, 65535) + 128) // 257  # [h, w]
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))


def alpha_of(data: bytes) -> np.ndarray | None:
    """Opacity as uint8 [h, w], upright; None where every pixel is opaque.

    Raises:
        Unreadable: see `decode`.
    """
    if data[:2] == b"\xff\xd8":
        return None
    with _decoding(data), _open(data) as image:
        if not image.has_transparency_data:
            return None
        _refuse_dense(image.height, image.width, data)
        alpha = np.array(image.convert("RGBA").getchannel("A"))
    if alpha.min() == 255:
        return None
    return _upright(alpha, orientation_of(data))


def stored_as(data: bytes) -> tuple[str, int]:
    """Pillow's name of the colours, and the EXIF orientation as written. Raises Unreadable."""
    with _decoding(data), _open(data) as image:
        return image.mode, _orientation(image)


@contextlib.contextmanager
def _decoding(data: bytes) -> Iterator[None]:
    """Turn whatever a decoder raises into Unreadable, and keep its warnings back."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (Unreadable, MemoryError, Interrupted):  # memory is bounded: it is not the image
        raise
    except Exception as error:  # plugins raise anything: AssertionError, SystemError, KeyError, ...
        raise Unreadable(_reason(data, error)) from error


def _open(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    if image.format == "EPS":
        raise Unreadable("PostScript is a program, which is not run")
    _refuse_bomb(image.height, image.width)
    return image


def _refuse_bomb(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise Unreadable(f"{width} x {height} px: there is no pixel")
    if height * width > MAX_PIXELS:
        raise Unreadable(f"{width} x {height} px is taken for a decompression bomb")


def _refuse_dense(height: int, width: int, data: bytes) -> None:
    """The same by the size of the whole file."""
    if height * width > max(SMALL_PIXELS, PIXELS_PER_BYTE * len(data)):
        raise Unreadable(
            f"{width} x {height} px in {len(data):,} bytes is taken for a decompression bomb"
        )


def _reason(data: bytes, error: Exception) -> str:
    if not data:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return one_line(error)


def orientation_of(data: bytes) -> int:
    """EXIF orientation 1 to 8; 1 where there is none."""
    if b"Exif\0\0" not in data[:65536] and data[:2] == b"\xff\xd8":
        return 1
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):  # TIFF: Pillow turns it itself
        return 1
    if data[:2] != b"\xff\xd8" and b"eXIf" not in data and b"EXIF" not in data:
        return 1
    with _decoding(data), _open(data) as image:
        return _orientation(image)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(0x0112, 1)
    except Interrupted:
        raise
    except Exception:  # the picture may be whole where its metadata are not
        return 1
    return value if value in range(1, 9) else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo EXIF orientation (EXIF 2.32, tag 0x0112); pixels are [h, w] or [h, w, 3]."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
