"""Views are pure functions, and the right pictures: against torchvision and timm."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from ssld.data.config import AugmentConfig
from ssld.data.transforms import EvalView, TrainView, crop_box


def photo(h=150, w=200) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 1, (h // 4, w // 4, 3))
    smooth = Image.fromarray((noise * 40 + 128).clip(0, 255).astype(np.uint8))
    return np.asarray(smooth.resize((w, h), Image.Resampling.BICUBIC))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


@pytest.mark.parametrize("policy", ["none", "autoaugment", "randaugment"])
def test_a_view_depends_on_seed_id_and_number_only(policy):
    data = png(photo())
    make = TrainView(AugmentConfig(policy=policy), 32, seed=1)
    first = make(data, "a", 0)
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    before = torch.get_rng_state()
    assert torch.equal(first, make(data, "a", 0))
    assert torch.equal(before, torch.get_rng_state())
    others = [make(data, "b", 0), make(data, "a", 1)]
    others.append(TrainView(AugmentConfig(policy=policy), 32, seed=2)(data, "a", 0))
    assert all(not torch.equal(first, other) for other in others)
    assert first.dtype == torch.uint8 and first.shape == (32, 32, 3)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
def test_pixels_equal_torchvisions_resized_crop(interpolation, antialias):
    """With the crop box of our draw, torchvision's functional gives the same picture."""
    pixels = photo()
    augment = AugmentConfig(interpolation=interpolation, antialias=antialias, flip=0)
    make = TrainView(augment, 40, seed=0)
    whole = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    mode = v2.InterpolationMode(interpolation)
    for view in range(10):
        got = make(png(pixels), "x", view)
        from ssld.data.transforms import key_of

        box = crop_box(random.Random(key_of(0, "x", view)), 150, 200, augment.scale, augment.ratio)
        expected = tv.resized_crop(whole, *box, [40, 40], mode, antialias).permute(1, 2, 0)
        assert (got.int() - expected.int()).abs().max() <= 1


def test_boxes_are_distributed_as_torchvisions():
    ours, draw = [], random.Random(0)
    for _ in range(4000):
        ours.append(crop_box(draw, 150, 200, (0.08, 1.0), (3 / 4, 4 / 3)))
    torch.manual_seed(0)
    transform = v2.RandomResizedCrop(32)
    image = torch.zeros(3, 150, 200, dtype=torch.uint8)
    theirs = [transform.make_params([image]) for _ in range(4000)]
    theirs = [(p["top"], p["left"], p["height"], p["width"]) for p in theirs]
    mine, other = np.array(ours, float), np.array(theirs, float)
    standard_error = other.std(0) / np.sqrt(2000)
    assert (np.abs(mine.mean(0) - other.mean(0)) < 4 * standard_error).all()
    assert np.allclose(mine.std(0), other.std(0), rtol=0.06)


def test_extreme_shapes_fall_back_to_the_centre():
    box = crop_box(random.Random(0), 10, 1000, (0.9, 1.0), (3 / 4, 4 / 3))
    assert box == (0, 493, 10, 13)
    for shape in ((1, 1), (1, 300), (300, 1)):
        data = png(np.full((*shape, 3), 77, np.uint8))
        assert (TrainView(AugmentConfig(), 16, 0)(data, "x", 0) == 77).all()
        assert (EvalView(16, 0.875, "bilinear")(data) == 77).all()


def test_reduced_decoding_shows_the_same_region():
    pixels = photo(900, 1200)
    augment = AugmentConfig(scale=(0.5, 1.0), flip=0, antialias=True)
    make = TrainView(augment, 32, seed=0)
    for view in range(5):
        full, reduced = make(png(pixels), "x", view), make(jpeg(pixels), "x", view)
        assert (full.int() - reduced.int()).abs().float().mean() < 4


def test_erasing_is_a_rectangle_of_noise_on_the_same_view():
    data, share = png(np.full((90, 120, 3), 200, np.uint8)), []
    make, plain = (TrainView(AugmentConfig(erasing=x), 64, seed=1) for x in (0.75, 0))
    for view in range(200):
        pixels = make(data, "a", view)
        changed = (pixels != plain(data, "a", view)).any(-1)
        share.append(changed.float().mean().item())
        if changed.any():
            rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
            inside = pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert inside.shape[0] * inside.shape[1] == pytest.approx(
                changed.sum().item(), rel=0.05
            )
            assert inside.float().mean().item() == pytest.approx(127.5, abs=30)
    erased = [x for x in share if x]
    assert len(erased) / 200 == pytest.approx(0.75, abs=0.1)
    assert 0.015 < min(erased) and max(erased) < 0.36 and np.mean(erased) > 0.1


def test_flip_is_a_mirror():
    pixels = png(photo())
    straight = TrainView(AugmentConfig(flip=0), 24, 0)(pixels, "x", 3)
    flipped = TrainView(AugmentConfig(flip=1), 24, 0)(pixels, "x", 3)
    assert torch.equal(straight.flip(1), flipped)


@pytest.mark.parametrize("shape", [(150, 200), (200, 150), (60, 60), (20, 33)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluation_view_is_timms(shape, interpolation):
    pixels = photo(*shape) if min(shape) > 40 else photo(80, 120)[: shape[0], : shape[1]]
    transform = timm.data.create_transform(
        (3, 48, 48), interpolation=interpolation, crop_pct=0.875, mean=(0, 0, 0), std=(1, 1, 1)
    )
    expected = transform(Image.fromarray(pixels)).permute(1, 2, 0) * 255  # type: ignore[union-attr]
    got = EvalView(48, 0.875, interpolation)(png(pixels))
    assert (got - expected).abs().mean() < 1.0
