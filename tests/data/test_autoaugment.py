"""AutoAugment is the reference's, operation by operation: against plain loops over pixels, and
Pillow where the reference leaves it to Pillow."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import v2

from ssld.data.autoaugment import GREY, POLICY, autoaugment, changed

LEVELS = (0, 2, 5, 8, 9)


def photo(side=24, wide=32) -> Image.Image:
    noise = np.random.default_rng(0).integers(20, 220, (side // 4, wide // 4, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize((wide, side), Image.Resampling.BICUBIC)


class Sign(random.Random):
    """Draws this sign."""

    sign = 1

    def choice(self, seq):
        return self.sign


def sign(number: int) -> Sign:
    draw = Sign()
    draw.sign = number
    return draw


def rotated(image: Image.Image, degrees: float) -> np.ndarray:
    """Through an alpha channel: what is transparent afterwards came from outside."""
    turned = image.convert("RGBA").rotate(degrees)
    return np.asarray(Image.composite(turned, Image.new("RGBA", image.size, (128,) * 4), turned))[
        ..., :3
    ]


def blended(image: Image.Image, other: np.ndarray, factor: float) -> np.ndarray:
    """other + factor (image - other), cut off as Pillow does."""
    mixed = other + np.float32(factor) * (np.asarray(image, np.float32) - other)
    return np.clip(mixed, 0, 255).astype(np.uint8)


def result(name: str, level: int, number: int = 1) -> np.ndarray:
    return np.asarray(changed(photo(), name, level, sign(number)))


@pytest.mark.parametrize("level", LEVELS)
def test_rotations_bring_in_grey_take_the_nearest_pixel_and_go_one_way(level):
    expected = rotated(photo(), np.linspace(0, 30, 10)[level])
    for number in (-1, 1):
        assert np.array_equal(result("rotate", level, number), expected)
    if level:
        assert (result("rotate", level)[0, 0] == GREY).all()
        values = {tuple(x) for x in np.asarray(photo()).reshape(-1, 3)}
        assert {tuple(x) for x in expected.reshape(-1, 3)} <= values | {GREY}  # none is a mixture


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("number", [-1, 1])
def test_shears_bring_in_grey_and_are_bicubic(level, number):
    slope = np.linspace(0, 0.3, 10)[level] * number
    expected = photo().transform(
        photo().size, Image.Transform.AFFINE, (1, slope, 0, 0, 1, 0),
        Image.Resampling.BICUBIC, fillcolor=(128, 128, 128),
    )  # fmt: skip
    found = result("shear_x", level, number)
    assert np.array_equal(found, np.asarray(expected))
    if level > 2:
        assert (found[-1, 0 if number < 0 else -1] == GREY).all()
        assert np.array_equal(found[0, 4:-4], np.asarray(photo())[0, 4:-4]) == (slope == 0)


@pytest.mark.parametrize("level", LEVELS)
def test_posterizing_keeps_the_reference_s_bits(level):
    bits = int(np.round(np.linspace(8, 4, 10))[level])
    expected = np.asarray(photo()) & (256 - 2 ** (8 - bits))
    assert np.array_equal(result("posterize", level), expected)


@pytest.mark.parametrize("level", LEVELS)
def test_solarizing_inverts_what_is_bright(level):
    pixels = np.asarray(photo())
    expected = np.where(pixels < np.linspace(256, 0, 10)[level], pixels, 255 - pixels)
    assert np.array_equal(result("solarize", level), expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("number", [-1, 1])
def test_colour_contrast_and_sharpness_are_blends_either_way(level, number):
    image, factor = photo(), 1 + np.linspace(0, 0.9, 10)[level] * number
    grey = np.asarray(image.convert("L"), np.float32)
    others = {
        "color": np.repeat(grey[..., None], 3, axis=2),
        "contrast": np.full((*grey.shape, 3), int(grey.mean() + 0.5), np.float32),
    }
    for name, other in others.items():
        difference = result(name, level, number).astype(int) - blended(image, other, factor)
        assert np.abs(difference).max() <= 1, name  # of rounding
    sharp = ImageEnhance.Sharpness(image).enhance(factor)
    assert np.array_equal(result("sharpness", level, number), np.asarray(sharp))


def test_operations_without_a_strength():
    image = photo()
    assert np.array_equal(result("invert", 4), 255 - np.asarray(image))
    stretched = result("autocontrast", 5).astype(float)
    assert stretched.min((0, 1)).tolist() == [0, 0, 0]
    assert stretched.max((0, 1)).min() >= 254
    assert np.array_equal(result("equalize", 8), np.asarray(ImageOps.equalize(image)))


def test_the_policy_is_the_paper_s():
    theirs = v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET)._policies
    names = {"ShearX": "shear_x"}
    without = ("equalize", "autocontrast", "invert")

    def plain(name: str, probability: float, level: int | None) -> tuple:
        name = names.get(name, name.lower())
        return name, probability, None if name in without else level

    expected = sorted((tuple(plain(*x) for x in pair) for pair in theirs), key=str)
    assert sorted((tuple(plain(*x) for x in pair) for pair in POLICY), key=str) == expected


def test_every_operation_is_drawn_and_the_shape_stays():
    draw, pixels = random.Random(0), torch.from_numpy(np.array(photo(31, 40))).flip(1)
    before = pixels.clone()
    found = [autoaugment(pixels, draw) for _ in range(200)]
    assert {x.shape for x in found} == {pixels.shape} and {x.dtype for x in found} == {torch.uint8}
    assert torch.equal(pixels, before)
    same = sum(torch.equal(x, pixels) for x in found)
    assert 0 < same < 60  # probabilities below 1 leave some as they are
    grey = sum(bool((x[0, 0] == 128).all()) for x in found)
    assert 20 < grey < 80  # turned ones: .6 + .8 + .2 + .8 + .4 + .8 of 25
