"""What of an image is kept for matching."""

from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from ssld.curate.near_duplicates.matching import mirrored_descriptors
from ssld.curate.near_duplicates.sift import (
    DESCRIPTOR_SCALE,
    DESCRIPTORS,
    FRAME_PX,
    THUMBNAIL_PX,
    features,
    features_of,
    root_sift,
)
from ssld.data.decode import Unreadable


def picture(seed: int, height: int = 200, width: int = 260) -> np.ndarray:
    """uint8 [h, w, 3]: smooth colours with shapes on them, another one for each seed."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 1, (height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 12)
    pixels = np.clip(128 + 50 * smooth / smooth.std(), 0, 255).astype(np.uint8)
    for _ in range(45):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        ink = tuple(int(v) for v in rng.integers(0, 256, 3))
        radius = int(rng.integers(4, 22))
        if rng.random() < 0.5:
            cv2.circle(pixels, (x, y), radius, ink, -1)
        else:
            corner = (x + 2 * radius, y + int(rng.integers(4, 40)))
            cv2.rectangle(pixels, (x, y), corner, ink, -1)
    return pixels


def encoded(pixels: np.ndarray, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()


@pytest.mark.parametrize("height, width", [(200, 260), (900, 300), (40, 64), (3000, 2000)])
def test_arrays_and_frame(height: int, width: int):
    pixels = cv2.resize(picture(1), (width, height))
    found = features(encoded(pixels, ".jpg"))
    n = len(found.points)
    assert 20 <= n <= DESCRIPTORS
    assert found.points.shape == (n, 2) and found.points.dtype == np.float32
    assert found.descriptors.shape == (n, 128) and found.descriptors.dtype == np.uint8
    assert max(found.frame) == FRAME_PX
    assert abs(found.frame[0] / found.frame[1] - width / height) < 0.02 * width / height
    assert max(found.thumbnail.shape) == THUMBNAIL_PX and found.thumbnail.dtype == np.uint8
    assert (found.points >= -0.5).all() and (found.points < np.array(found.frame)).all()


def test_the_same_bytes_give_the_same_arrays():
    data = encoded(picture(2))
    first, second = features(data), features(data)
    for name in ("points", "descriptors", "thumbnail"):
        assert np.array_equal(getattr(first, name), getattr(second, name))


def test_exif_rotation_is_the_decoders(tmp_path):
    from PIL import Image

    upright, path = picture(3), tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by 90 degrees
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(path, exif=exif)
    turned, expected = features(path.read_bytes()), features(encoded(upright))
    assert turned.frame == expected.frame
    assert np.array_equal(turned.descriptors, expected.descriptors)


@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (2, 300), (300, 1)])
def test_images_without_structure_have_no_descriptors(shape: tuple[int, int]):
    found = features_of(np.full((*shape, 3), 90, np.uint8))
    assert found.points.shape == (0, 2) and found.descriptors.shape == (0, 128)
    assert min(found.thumbnail.shape) >= 1


@pytest.mark.parametrize("data", [b"", b"no image", encoded(picture(1))[:400]])
def test_unreadable(data: bytes):
    with pytest.raises(Unreadable):
        features(data)


def test_root_sift_is_the_square_root_of_shares():
    raw = np.random.default_rng(0).integers(0, 200, (50, 128)).astype(np.float32)
    expected = np.sqrt(raw.astype(np.float64) / raw.sum(axis=1, keepdims=True))
    found = root_sift(raw) / DESCRIPTOR_SCALE
    assert np.abs(found - expected).max() <= 0.5 / DESCRIPTOR_SCALE + 1e-6
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=5e-3)
    assert not root_sift(np.zeros((1, 128), np.float32)).any()


def test_lettering_does_not_take_all_places():
    """A page with more than 200 stronger keypoints in its letters: the picture keeps some."""
    sheet = Image.new("RGB", (400, 300), "white")
    font = ImageFont.load_default(size=20)  # OpenCV 5 draws letters other than OpenCV 4 does
    for line in range(8):
        place = (5, 6 + 35 * line)
        ImageDraw.Draw(sheet).text(place, "many words of a page", "black", font)
    page = np.array(sheet)
    faint = cv2.resize(picture(4), (150, 200)) // 3 + 120
    page[50:250, 240:390] = faint
    x, y = features_of(page).points.T * 400 / FRAME_PX
    assert ((x > 240) & (x < 390) & (y > 50) & (y < 250)).sum() >= 15


def test_permuted_descriptors_are_those_of_the_mirrored_picture():
    pixels = picture(5)
    upright = features_of(pixels)
    flipped = features_of(np.ascontiguousarray(pixels[:, ::-1]))
    places = np.stack([upright.frame[0] - 1 - upright.points[:, 0], upright.points[:, 1]], axis=1)
    distance = np.linalg.norm(places[:, None] - flipped.points, axis=2)
    near = distance.min(axis=1) < 0.5
    assert near.mean() > 0.7
    ours = mirrored_descriptors(upright.descriptors)[near].astype(float)
    theirs = flipped.descriptors[distance.argmin(axis=1)[near]].astype(float)
    cosine = (ours * theirs).sum(axis=1) / DESCRIPTOR_SCALE**2
    as_they_are = (upright.descriptors[near] * theirs).sum(axis=1) / DESCRIPTOR_SCALE**2
    # One place may have several directions, and its neighbour here another than there.
    assert np.median(cosine) > 0.97 and np.median(as_they_are) < 0.8
    twice = mirrored_descriptors(mirrored_descriptors(upright.descriptors))
    assert np.array_equal(twice, upright.descriptors)


def test_workers_do_not_import_torch_or_faiss():
    code = (
        "import sys, ssld.curate.near_duplicates.reference_set; "
        "sys.exit(str({'torch', 'faiss', 'scipy'} & set(sys.modules) or '') or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
