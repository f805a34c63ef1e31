"""Whatever a decoder raises is one unreadable image, within bounded time and memory."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
import struct
import zlib
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from ssld.cli.run import main
from ssld.common.errors import Interrupted
from ssld.curate.near_duplicates.sift import features
from ssld.curate.sets.index import measure
from ssld.data import decode as decoding
from ssld.data import transforms as views
from ssld.data.decode import Unreadable, alpha_of, decode, image_size, stored_as
from ssld.data.transforms import EvalView, SquashView

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8)
READERS = (image_size, decode, partial(decode, reduce=8), alpha_of, stored_as, measure,
           EvalView(32, 0.875, "bicubic"), SquashView(32), features)  # fmt: skip


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(file, kind, **options)
    return file.getvalue()


MARKS = (
    b"DDS ", b"8BPS", b"\x1f\x8b", b"FTEX", b"BLP2", b"icns", b"qoif", b"\0\0\2\0", b"P7 332",
    b"%!PS-Adobe", b"\x59\xa6\x6a\x95", b"DanM", b"\xb1\x68\xde\x3a", b"IIII", b"SIMPLE  =",
    b"gimp", b"RIFF\0\0\0\0WEBP", b"\0\0\0\x20ftypavif", b"/* XPM */",
)  # fmt: skip


def seeds() -> dict[str, bytes]:
    """A small file of each format and mode that Pillow writes, and the marks of the others."""
    Image.init()
    found, image = {}, Image.fromarray(PIXELS)
    for kind in sorted(set(Image.SAVE) - {"HDF5", "GRIB", "BUFR", "WMF", "IM"}):
        for mode in ("RGB", "L", "P", "RGBA", "1", "CMYK", "F"):
            with contextlib.suppress(OSError, KeyError, ValueError, AttributeError, SystemError):
                found[f"{kind} {mode}"] = encoded(image.convert(mode), kind)
    return found | {f"mark {mark!r}": mark + bytes(200) for mark in MARKS}


def mutated(data: bytes, draw: random.Random) -> bytes:
    found = bytearray(data)
    at, head = draw.randrange(len(found)), draw.randrange(min(64, len(found)))
    how = draw.randrange(5)
    if how == 0:
        return bytes(found[:at])
    if how == 1:
        found[at] = draw.randrange(256)
    elif how == 2:
        found[head] = draw.randrange(256)
    elif how == 3:
        found[head : head + 4] = b"\xff" * len(found[head : head + 4])
    else:
        found[at : at + 40] = bytes(len(found[at : at + 40]))
    return bytes(found)


def read(data: bytes, readers=READERS) -> int:
    """How many of the readers refuse it, each in one sentence."""
    refused = 0
    for reader in readers:
        try:
            reader(data)
        except Unreadable as error:
            assert str(error) and "\n" not in str(error)
            refused += 1
    return refused


def test_every_format_under_any_name_and_damaged():
    draw, files = random.Random(0), seeds()
    assert len(files) > 100
    whole = {name for name, data in files.items() if not read(data, [decode])}
    assert {"PNG RGB", "JPEG CMYK", "AVIF RGB", "DDS RGB", "PCX L", "QOI RGBA"} <= whole
    assert not {name for name in whole if name.startswith(("EPS", "PDF"))}
    for data in files.values():
        for _ in range(2):
            read(mutated(data, draw), (decode, alpha_of, READERS[6]))


@pytest.mark.parametrize("kind", ["AVIF", "WEBP", "JPEG", "PNG", "TIFF", "GIF", "JPEG2000"])
def test_damaged_files_of_the_usual_formats(kind):
    data, draw = encoded(PIXELS, kind), random.Random(1)
    assert read(data) == 0
    for _ in range(15):
        read(mutated(data, draw))
    broken = bytearray(data)
    broken[len(broken) // 2 :] = bytes(len(broken) - len(broken) // 2)
    read(bytes(broken))


@pytest.mark.parametrize("error", [AssertionError, KeyError, SystemError, RecursionError, EOFError])
def test_whatever_a_decoder_raises(monkeypatch, error):
    def fail(*_, **__):
        raise error("odd")

    data = encoded(PIXELS)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(Unreadable, match="odd"):
        decode(data)


@pytest.mark.parametrize("error", [KeyboardInterrupt, Interrupted, MemoryError])
def test_what_is_not_the_images_fault_goes_on(monkeypatch, error):
    def fail(*_, **__):
        raise error

    data = encoded(PIXELS)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    with pytest.raises(error):
        decode(data)


def test_postscript_is_not_run():
    with pytest.raises(Unreadable, match="PostScript is a program"):
        decode(encoded(PIXELS, "EPS"))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes(min(height * (width + 1), 1 << 16))))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + rows + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (png(30000, 30000), "30000 x 30000 px|exceeds limit"),
        (png(8000, 8000), r"8000 x 8000 px in \d+ bytes is taken for a decompression bomb"),
        (png(0, 5), "."),
        (png(5, 0), "."),
        (b"P6 0 0 255\n", "."),
        (b"GIF89a\0\0\0\0\0\0\0;", "."),
        (b"", "the file is empty"),
        (b"\xff\xd8", "."),
        (b"\0" * 10_000, "not an image"),
    ],
)
def test_sizes_that_cannot_be(data, said):
    with pytest.raises(Unreadable, match=said):
        decode(data)
    with pytest.raises(Unreadable):
        EvalView(32, 0.875, "bicubic")(data)


def test_a_bomb_is_one_by_the_size_of_its_file(monkeypatch):
    flat, noise = (encoded(x, "JPEG", quality=95) for x in (np.zeros_like(PIXELS), PIXELS))
    monkeypatch.setattr(decoding, "SMALL_PIXELS", 100)
    monkeypatch.setattr(decoding, "PIXELS_PER_BYTE", 0.6)
    for data, bad in ((flat, True), (noise, False), (encoded(PIXELS), False)):
        assert bool(read(data, [decode])) == bad
        assert image_size(data) == (24, 20)  # of a header alone it cannot be said


def test_large_images_are_converted_strip_by_strip_to_the_same_pixels(monkeypatch):
    images = [Image.fromarray(PIXELS).convert(mode) for mode in ("RGB", "L", "P", "RGBA", "1")]
    data = [encoded(image) for image in images]
    data.append(encoded(PIXELS[..., 0].astype(np.uint16) * 251))
    data.append(encoded(Image.fromarray(PIXELS).convert("CMYK"), "JPEG"))
    data.append(encoded(images[2], "GIF", transparency=3))
    whole = [decode(x) for x in data]
    monkeypatch.setattr(decoding, "STRIP_PIXELS", 100)
    for each, expected in zip(data, whole, strict=True):
        assert np.array_equal(decode(each), expected)


def test_odd_but_good_images_are_read():
    frames = [Image.fromarray(np.roll(PIXELS, k, 0)) for k in range(3)]
    more = {"save_all": True, "append_images": frames[1:]}
    for kind in ("PNG", "WEBP", "TIFF", "GIF", "MPO", "AVIF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        found = decode(encoded(frames[0], kind, **more, **options))
        assert found.shape == (24, 20, 3)
        if kind in ("PNG", "WEBP", "TIFF"):
            assert np.array_equal(found, PIXELS), kind
    assert decode(encoded(PIXELS, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")).shape[2] == 3
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "x" * 900_000)
    assert np.array_equal(decode(encoded(PIXELS, pnginfo=info)), PIXELS)
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 100_000_000))
    read(png(4, 4, bomb))


@pytest.mark.parametrize("shape", [(3, 70), (70, 3), (4, 101), (200, 4000), (3001, 150)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_thin_image_is_cropped_first_and_looks_the_same(monkeypatch, shape, kind):
    height, width = shape
    coarse = np.random.default_rng(0).integers(0, 256, (-(-height // 4), -(-width // 4), 3))
    image = Image.fromarray(coarse.astype(np.uint8)).resize((width, height), 3)
    view, data = EvalView(32, 0.875, "bicubic"), encoded(image, kind)
    thin = view(data)
    assert thin.shape == (32, 32, 3)
    monkeypatch.setattr(views, "THIN_ASPECT", 10**6)
    assert (thin.int() - view(data).int()).abs().float().mean() < 0.5


def test_ordinary_images_are_not_touched_by_it(monkeypatch):
    monkeypatch.setattr(views, "_without_ends", lambda *_: pytest.fail("is for thin images"))
    for shape in ((48, 64), (3, 48), (160, 10), (300, 301)):
        pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8)
        EvalView(32, 0.875, "bicubic")(encoded(pixels))


@pytest.mark.parametrize("shape", [(20000, 1), (1, 65000)])
def test_a_strip_takes_no_memory(monkeypatch, shape):
    made, resize = [], views.resize

    def noted(pixels, size, *rest, **options):
        made.append(pixels.numel() + 3 * size[0] * size[1])
        return resize(pixels, size, *rest, **options)

    monkeypatch.setattr(views, "resize", noted)
    data = encoded(np.full(shape, 128, np.uint8))
    assert (EvalView(224, 0.875, "bicubic")(data) == torch.full((224, 224, 3), 128)).all()
    assert max(made) < 3 * views.THIN_ASPECT * 256**2
    assert len(measure(data)) == 8 and features(data).thumbnail.size


def test_alpha_is_part_of_a_picture():
    drawings = []
    for k in range(8):
        pixels = np.zeros((16, 16, 4), np.uint8)
        pixels[k : k + 8, k : k + 8, 3] = 255
        drawings.append(Image.fromarray(pixels))
    hashes = [measure(encoded(image))[1] for image in drawings]
    assert len(set(hashes)) == 8
    assert measure(encoded(drawings[0], "TIFF"))[1] == hashes[0]
    assert measure(encoded(drawings[0], "WEBP", lossless=True, exact=True))[1] == hashes[0]
    opaque = Image.fromarray(PIXELS)
    plain = measure(encoded(opaque))[1]
    assert measure(encoded(opaque.convert("RGBA")))[1] == plain  # stored anew, the same picture
    few = opaque.quantize(8)
    clear = measure(encoded(few, transparency=3))[1]
    assert clear != measure(encoded(few))[1] == measure(encoded(few.convert("RGB")))[1]


def test_damaged_files_are_counted_by_the_command(colours, teacher_file, tmp_path, capsys):
    shutil.copytree(colours / "val", tmp_path / "val")
    broken = bytearray(encoded(PIXELS, "AVIF"))
    broken[len(broken) // 2 :] = bytes(len(broken) - len(broken) // 2)
    strip = encoded(np.full((20000, 1), 128, np.uint8))
    odd = {"a.jpg": bytes(broken), "b.jpg": b"DDS " + bytes(200), "strip.png": strip}
    for name, data in odd.items():
        (tmp_path / "val/red" / name).write_bytes(data)
    words = ["--model=test_resnet", f"--checkpoint={teacher_file}", "--workers=0"]
    words += [f'--data=["{tmp_path}/val"]', "--max_unreadable=0.5"]
    assert main(["evaluate", *words]) == 0
    shown = capsys.readouterr()
    bad = sum(read(data, [decode]) for data in odd.values())
    assert f"on {27 - bad} images, {bad} unreadable" in shown.out and bad > 0
    assert shown.err.count("unreadable, left out: ") == bad
