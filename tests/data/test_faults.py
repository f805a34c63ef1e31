"""Faults that were found once and must not come back."""

from __future__ import annotations

import io
import struct
import tarfile
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from ssld.common.errors import InputError
from ssld.data.config import AugmentConfig
from ssld.data.decode import Unreadable, decode, image_size
from ssld.data.labels import LabelIndex
from ssld.data.loading import ViewBatches, train_batches
from ssld.data.sampling import Sampler
from ssld.data.sources import open_source
from ssld.data.transforms import TrainView
from ssld.data.unreadable import Entry, Unreadables

NOISE = np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def batches(source, workers: int, index: LabelIndex | None = None) -> list:
    make = ViewBatches([source], TrainView(AugmentConfig(policy="autoaugment"), 8, 0), index)
    sampler = Sampler([len(source)], None, 0)
    return list(
        train_batches(make, sampler, batch_size=2, first_step=0, last_step=2, workers=workers)
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_is_turned_once(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(NOISE), "TIFF", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert image_size(data) == expected.shape[:2]
    assert np.array_equal(decode(data), expected)


def test_pillows_warnings_are_not_ours():
    palette = Image.fromarray(NOISE).quantize(16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(encoded(palette, "PNG", transparency=bytes(range(16))))


@pytest.mark.parametrize("reduce", [1, 8])
def test_jpeg_bomb_is_refused_before_memory_is_taken(reduce):
    data = bytearray(encoded(Image.fromarray(NOISE), "JPEG"))
    start_of_frame = data.find(b"\xff\xc0")
    data[start_of_frame + 5 : start_of_frame + 9] = struct.pack(">HH", 60000, 60000)
    with pytest.raises(Unreadable, match="60000 x 60000 px"):
        image_size(bytes(data))
    with pytest.raises(Unreadable, match="60000 x 60000 px"):
        decode(bytes(data), reduce)


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_random_state_alone(colours, workers):
    source = open_source(str(colours / "unlabeled"))
    before = torch.get_rng_state()
    batches(source, workers)
    assert torch.equal(before, torch.get_rng_state())


def test_policy_does_not_seed_other_devices(colours, monkeypatch):
    monkeypatch.setattr(torch, "manual_seed", lambda _: pytest.fail("seeds every device"))
    batches(open_source(str(colours / "unlabeled")), 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_label_is_one_sentence(colours, workers):
    source = open_source(str(colours / "train"))
    with pytest.raises(InputError) as error:
        batches(source, workers, LabelIndex(["nothing"], 1))
    assert str(error.value).startswith("label '") and "\n" not in str(error.value)


def test_cache_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "0.png").write_bytes(encoded(Image.fromarray(NOISE), "PNG"))
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        archive.add(tmp_path / "0.png", "0.png")
    with pytest.raises(InputError, match="XDG_CACHE_HOME"):
        open_source(str(tmp_path / "s.tar"))


class Photos(list[int]):
    path = "photos"


def test_too_many_are_named_with_what_is_wrong():
    """Also those that must not be seen, whose reason names a held-out image."""
    source: Any = Photos(range(100))
    entries = [Entry(0, f"{i}", f"photos/{i}.webp", f"is val/{i}.png") for i in range(5)]
    found = Unreadables([source], 0.02)
    found.add(entries[:2])
    said = (
        r"photos: 3 of 100 .* \(2.0%\), photos/0.webp \(is val/0.png\), photos/1.webp "
        r"\(is val/1.png\), photos/2.webp \(is val/2.png\); mend"
    )
    with pytest.raises(InputError, match=said):
        found.add(entries)
    found = Unreadables([source], 0.04)
    with pytest.raises(InputError, match=r"photos/4.webp \(is val/4.png\) and 2 more; mend"):
        found.add(entries)
