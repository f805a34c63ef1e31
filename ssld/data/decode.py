"""Bytes of an image file -> uint8 RGB pixels, upright, or the reason why not.

JPEGs in colour or grey take a fast path (libjpeg-turbo through simplejpeg, which also decodes at
1/2, 1/4 or 1/8 size); everything else goes through Pillow. Alpha is dropped, as `convert("RGB")`
does in timm and torchvision, for which published weights were trained and tested.
"""

from __future__ import annotations

import io
import math
import struct
import warnings

import numpy as np
import simplejpeg
from PIL import Image, ImageFile, UnidentifiedImageError

MAX_PIXELS = 400_000_000
"""Larger images are taken for decompression bombs."""


class Unreadable(Exception):
    """An image that cannot be read; the message is the reason."""


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
    if _is_plain_jpeg(data):
        pixels = _decode_jpeg(data, reduce)
    else:
        pixels = _decode_any(data)
    return _upright(pixels, orientation_of(data))


def _stored_size(data: bytes) -> tuple[int, int]:
    if data[:2] == b"\xff\xd8":
        try:
            height, width = simplejpeg.decode_jpeg_header(data)[:2]
        except ValueError as error:
            raise Unreadable(_reason(data, error)) from error
        _refuse_bomb(int(height), int(width))
        return int(height), int(width)
    with _open(data) as image:
        return image.height, image.width


def _is_plain_jpeg(data: bytes) -> bool:
    if data[:2] != b"\xff\xd8":
        return False
    try:
        return simplejpeg.decode_jpeg_header(data)[2] in ("YCbCr", "Gray")
    except ValueError as error:
        raise Unreadable(_reason(data, error)) from error


def _decode_jpeg(data: bytes, reduce: int) -> np.ndarray:
    try:
        height, width = _stored_size(data)
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


def _decode_any(data: bytes) -> np.ndarray:
    with _open(data) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image.load()
            if image.mode in ("I;16", "I;16B", "I;16L", "I"):
                # Pillow would clip at 255; 65535 / 255 = 257.
                return np.repeat(_to_8_bit(np.asarray(image))[..., None], 3, axis=2)
            if image.mode == "F":
                raise Unreadable("floating-point pixels have no known range")
            return np.array(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, IndexError, struct.error) as error:
            raise Unreadable(_reason(data, error)) from error


def _to_8_bit(pixels: np.ndarray) -> np.ndarray:
    return ((pixels.astype(np.int64).clip(0, 65535) + 128) // 257).astype(np.uint8)


def _open(data: bytes) -> ImageFile.ImageFile:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, struct.error) as error:
        raise Unreadable(_reason(data, error)) from error
    except Image.DecompressionBombError as error:
        raise Unreadable(str(error)) from error
    _refuse_bomb(image.height, image.width)
    return image  # type: ignore[return-value]


def _refuse_bomb(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise Unreadable(f"{width} x {height} px is taken for a decompression bomb")


def _reason(data: bytes, error: Exception) -> str:
    if not data:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return " ".join(str(error).split()) or type(error).__name__


def orientation_of(data: bytes) -> int:
    """EXIF orientation 1 to 8; 1 where there is none."""
    if b"Exif\0\0" not in data[:65536] and data[:2] == b"\xff\xd8":
        return 1
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):  # TIFF: Pillow turns it itself
        return 1
    if data[:2] != b"\xff\xd8" and b"eXIf" not in data and b"EXIF" not in data:
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = _open(data).getexif().get(0x0112, 1)
    except (OSError, ValueError, SyntaxError, struct.error):
        return 1
    return value if value in range(1, 9) else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo EXIF orientation (EXIF 2.32, tag 0x0112); pixels are [h, w, 3]."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
