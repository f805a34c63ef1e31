"""Damaged images of every format that Pillow writes, under names of images, through a folder source
and the loader's views; and masks."""

from __future__ import annotations

import functools
import io
import random
import struct
import zlib
from pathlib import Path

from mutations import damaged
from sandbox import Kind

NAMES = ("x.jpg", "x.png", "x.webp", "x.tif", "x.gif", "x.bmp", "x.ppm", "x.JPEG")
ENDINGS = (
    *("jpg", "png", "webp", "avif", "tif", "gif", "bmp", "dds", "ppm", "ico", "jp2", "icns"),
    *("tga", "pcx", "sgi", "im", "eps", "spider", "msp", "xbm", "mpo", "blp", "qoi", "pfm"),
)
SETTINGS: dict[str, list[dict]] = {
    "jpg": [{}, {"progressive": True}, {"quality": 100, "subsampling": 0}, {"optimize": True}],
    "png": [{}, {"optimize": True}, {"compress_level": 0}],
    "webp": [{}, {"lossless": True}],
    "tif": [{"compression": x} for x in (None, "tiff_lzw", "packbits", "tiff_deflate", "jpeg")]
    + [{"compression": x} for x in ("tiff_adobe_deflate", "zstd", "webp", "lzma", "group4")],
    "dds": [{}, {"pixel_format": "DXT1"}, {"pixel_format": "DXT5"}, {"pixel_format": "BC5"}],
    "tga": [{}, {"compression": "tga_rle"}],
    "jp2": [{}, {"irreversible": True, "quality_layers": [20]}],
}
MODES = ("RGB", "RGB", "RGB", "L", "P", "RGBA", "LA", "CMYK", "1", "I;16", "I", "F", "YCbCr")
FORMATS = {"tif": "TIFF", "jpg": "JPEG", "jp2": "JPEG2000", "pfm": "PPM"}


@functools.cache
def bases() -> list[tuple[str, bytes]]:
    """(ending, valid file) of every format, mode and setting that Pillow can write together."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a few formats are deprecated
        return _bases()


def _bases() -> list[tuple[str, bytes]]:
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3)).astype(np.uint8)
    pixels[:12] = (200, 30, 90)
    picture, found = Image.fromarray(pixels), []
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    Image.init()
    for ending in ENDINGS:
        for mode in dict.fromkeys(MODES):
            grey = picture.convert("L") if mode in ("I;16", "I", "F") else picture
            image = grey.convert(mode)
            every = SETTINGS.get(ending, [{}])
            for settings in every if mode in ("RGB", "L", "1") else every[:1]:
                for more in ({}, {"exif": exif}) if mode == "RGB" else ({},):
                    file = io.BytesIO()
                    try:
                        format = FORMATS.get(ending, ending.upper())
                        image.resize((16, 16)).save(file, format, **settings, **more)
                    except (OSError, ValueError, KeyError, RuntimeError, TypeError):
                        continue
                    found.append((ending, file.getvalue()))
    moving = io.BytesIO()
    picture.save(moving, "GIF", save_all=True, append_images=[picture.rotate(90)] * 2)
    return [*found, ("gif", moving.getvalue()), *(("png", x) for x in _thin())]


def _thin() -> list[bytes]:
    """Small files of many pixels."""
    sizes = ((1, 60_000), (60_000, 1), (3000, 3000), (19_000, 19_000), (100_000, 100_000))
    return [png(*size) for size in sizes]


def png(width: int, height: int) -> bytes:
    """Black, of one bit a pixel; no data beyond 40 MB of it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    rows = zlib.compress(bytes(min((width + 15) // 8 * height, 40_000_000)), 9)
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def _by_format(rng: random.Random) -> bytes:
    """Formats first: some have thirty bases."""
    ending = rng.choice((*ENDINGS, "png", "jpg", "tif", "webp", "avif"))
    return rng.choice([data for name, data in bases() if name == ending] or [bases()[0][1]])


def foreign_image(rng: random.Random) -> bytes:
    """Damaged, once in thirty whole, once in twenty with checksums of PNG that fit the damage."""
    data = _by_format(rng)
    if rng.random() < 0.03:
        return data
    data = damaged(rng, data)
    return resealed(data) if data[:4] == b"\x89PNG" and rng.random() < 0.5 else data


def resealed(data: bytes) -> bytes:
    """A damaged PNG whose chunks have right checksums, so that more of it is looked at."""
    found, place = data[:8], 8
    while place + 12 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        if size > len(data):
            break
        body = data[place + 4 : place + 8 + size]
        found += data[place : place + 4] + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + size
    return found + data[place:]


def write_images(rng: random.Random, folder: Path) -> None:
    for i in range(rng.choice((1, 1, 2))):
        (folder / f"{i}{rng.choice(NAMES)}").write_bytes(foreign_image(rng))


def use_images(folder: Path, out: Path) -> str | None:
    """As training and evaluation see them."""
    from ssld.data.sources import open_source

    return views_of(open_source(str(folder)))


@functools.cache
def _views():
    from ssld.data.config import AugmentConfig
    from ssld.data.transforms import EvalView, SquashView, TrainView

    return TrainView(AugmentConfig(), 16, 0), EvalView(16, 0.875, "bicubic"), SquashView(16)


def views_of(source) -> str | None:
    """All images of a source as batches of the three views; `unreadable` where one is."""
    import numpy as np

    from ssld.data.loading import ViewBatches

    unreadable = False
    rows = np.array([[0, i, 0, 0] for i in range(len(source))], np.int64)
    for view in _views():
        batch = ViewBatches([source], view)(rows)
        assert batch.images.shape == (len(source), 16, 16, 3)
        unreadable |= bool(batch.unreadable)
        for _, _, _, reason in batch.unreadable:
            assert reason and "\n" not in reason, reason
    for i in range(len(source)):
        source.sample_id(i), source.location(i), source.address(i), source.label(i), source.size(i)
    return "unreadable" if unreadable else None


MODULES = ("ssld.data.sources", "ssld.data.loading", "ssld.data.transforms")
KINDS = {"images.files": Kind(write_images, use_images, MODULES)}
