"""Every kind of image file -> the right pixels, or the reason why not."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from ssld.data.decode import Unreadable, decode, image_size


def smooth(h=48, w=64) -> np.ndarray:
    y, x = np.mgrid[:h, :w]
    return np.stack([x * 255 // w, y * 255 // h, (x + y) * 255 // (w + h)], -1).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def near(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    return a.shape == b.shape and np.abs(a.astype(int) - b.astype(int)).mean() <= tolerance


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 4),
        ("JPEG", {"quality": 95}, 3),
        ("JPEG", {"quality": 95, "progressive": True}, 3),
    ],
)
def test_formats(kind, options, tolerance):
    data = encoded(Image.fromarray(smooth()), kind, **options)
    assert image_size(data) == (48, 64)
    assert near(decode(data), smooth(), tolerance)


def test_grey_palette_and_alpha():
    grey = smooth()[..., 0]
    three = np.repeat(grey[..., None], 3, -1)
    assert near(decode(encoded(Image.fromarray(grey), "PNG")), three, 0)
    assert near(decode(encoded(Image.fromarray(grey), "JPEG", quality=95)), three, 1)
    palette = Image.fromarray(smooth() // 64 * 64).convert("P", palette=Image.Palette.ADAPTIVE)
    assert near(decode(encoded(palette, "PNG")), np.asarray(palette.convert("RGB")), 0)
    alpha = np.dstack([smooth(), np.full((48, 64), 90, np.uint8)])
    assert near(decode(encoded(Image.fromarray(alpha), "PNG")), smooth(), 0)
    la = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(grey)])
    assert near(decode(encoded(la, "PNG")), three, 0)
    bits = Image.fromarray(grey > 99)
    assert near(decode(encoded(bits, "PNG")), np.repeat((grey > 99)[..., None] * 255, 3, -1), 0)


def test_sixteen_bits_are_scaled_not_clipped():
    wide = (smooth()[..., 0].astype(np.uint16) * 257)[::-1]
    for data in (
        cv2.imencode(".png", wide)[1].tobytes(),
        encoded(Image.fromarray(np.ascontiguousarray(wide)), "TIFF"),
    ):
        assert near(decode(data), np.repeat(smooth()[::-1, :, :1], 3, -1), 0)
    colour = cv2.imencode(".png", smooth()[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
    assert near(decode(colour), smooth(), 0.5)


def test_cmyk_as_photographs_are_printed():
    cmyk = Image.fromarray(smooth()).convert("CMYK")
    assert near(decode(encoded(cmyk, "JPEG", quality=95)), smooth(), 6)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("reduce", [1, 2])
def test_exif_orientation(orientation, kind, reduce):
    upright = smooth()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    assert image_size(data) == (48, 64)
    expected = upright[::reduce, ::reduce] if kind == "JPEG" else upright
    assert near(decode(data, reduce), expected, 4 * reduce)


@pytest.mark.parametrize("reduce", [2, 4, 8])
def test_reduced_jpeg_is_the_smaller_picture(reduce):
    photo = Image.fromarray(smooth(160, 240))
    pixels = decode(encoded(photo, "JPEG", quality=95), reduce)
    size = (240 // reduce, 160 // reduce)
    assert pixels.shape == (size[1], size[0], 3)
    assert near(pixels, np.asarray(photo.resize(size, Image.Resampling.BOX)), 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.99])
def test_truncated_is_never_decoded(kind, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(Unreadable, match="."):
        decode(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"this is text", "not an image"),
        (b"\xff\xd8\xff\xe0 no more", "."),
        (b"\x89PNG\r\n\x1a\nbroken", "."),
        (b"GIF89a", "."),
        (b"II*\0", "."),
    ],
)
def test_what_is_no_image_says_so(data, reason):
    for read in (decode, image_size):
        with pytest.raises(Unreadable, match=reason):
            read(data)


def test_trailing_bytes_do_not_hide_a_picture():
    data = encoded(Image.fromarray(smooth()), "JPEG", quality=95) + b"\0" * 100 + b"trailer"
    assert near(decode(data), smooth(), 3)
