"""What policies draw, against the references' tables; colours against Pillow."""

from __future__ import annotations

import collections
import random

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from PIL import ImageEnhance, ImageOps
from torchvision.tv_tensors import Image

from downstream.dense.config import PolicyConfig
from downstream.dense.operations import COLOURS, GEOMETRIC, _affine, recolour
from downstream.dense.policies import BOXES, IN_BOXES, MASKS, Operation, draw_operations

PIXELS = np.random.default_rng(0).integers(20, 230, (24, 32, 3)).astype(np.uint8)
REFERENCE = {
    "autocontrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
    "invert": lambda image, s: ImageOps.invert(image),
    "posterize": lambda image, s: ImageOps.posterize(image, 8 - round(4 * s)),
    "solarize": lambda image, s: ImageOps.solarize(image, round(256 * (1 - s) + 0.4999)),
    "solarize_add": lambda image, s: Pillow.fromarray(
        np.where(np.asarray(image) < 128, np.asarray(image) + round(110 * s), image).astype("u1")
    ),
    "color": lambda image, s: ImageEnhance.Color(image).enhance(1 + 0.9 * s),
    "contrast": lambda image, s: ImageEnhance.Contrast(image).enhance(1 + 0.9 * s),
    "brightness": lambda image, s: ImageEnhance.Brightness(image).enhance(1 + 0.9 * s),
    "sharpness": lambda image, s: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * s),
}
"""At strength s; 110 of solarize_add and below 128 stay below 256."""


def test_colours_are_pillows_at_every_level():
    assert set(REFERENCE) == set(COLOURS)
    image = Image(torch.from_numpy(PIXELS).permute(2, 0, 1))
    for name, reference in REFERENCE.items():
        signed = name in ("color", "contrast", "brightness", "sharpness")
        for strength in [
            s * level / 10 for level in range(11) for s in ((-1, 1) if signed else (1,))
        ]:
            got = recolour(image, name, strength).permute(1, 2, 0).numpy().astype(int)
            expected = np.asarray(reference(Pillow.fromarray(PIXELS), strength)).astype(int)
            assert np.abs(got - expected).max() <= 2, (name, strength)


def test_at_magnitude_10_operations_are_what_the_reference_calls_10():
    """tensorflow/tpu: 30 degrees, a slope of .3, 100 px of COCO's 640."""
    config = PolicyConfig(policy="randaugment")
    drawn = {}
    for seed in range(400):
        for x in draw_operations(config, random.Random(seed), boxes=True):
            drawn.setdefault(x.name, set()).add(round(x.strength, 9))
    assert set(drawn) == {*GEOMETRIC, *COLOURS, "cutout"} and len(drawn) == 16
    assert drawn["rotate"] == drawn["shear_x"] == drawn["shear_y"] == {1.0, -1.0}
    assert drawn["translate_x"] == drawn["translate_y"] == {0.4, -0.4}
    assert drawn["cutout"] == {0.4} and all(drawn[name] == {1.0} for name in COLOURS)
    assert _affine("translate_y", 0.4, 640)["translate"] == [0, 100]
    assert _affine("rotate", -1.0, 640)["angle"] == -30
    turned = PolicyConfig(policy="randaugment", randaugment_ops=3, randaugment_magnitude=15)
    some = [draw_operations(turned, random.Random(seed), boxes=False) for seed in range(50)]
    assert {len(x) for x in some} == {3}
    assert {abs(x.strength) for part in some for x in part if x.name == "rotate"} == {1.5}


def test_operations_of_randaugment_are_equally_likely():
    draw, config = random.Random(0), PolicyConfig(policy="randaugment")
    counts = collections.Counter(
        x.name for _ in range(1600) for x in draw_operations(config, draw, boxes=True)
    )
    assert all(150 < count < 250 for count in counts.values())  # 200 +- 14


def test_autoaugment_for_boxes_is_the_published_policy():
    """`policy_v0` in its own words: operation, probability, level of 10."""
    v0 = [
        [("translate_x", 0.6, 4), ("equalize", 0.8, 10)],
        [(IN_BOXES, 0.2, 2), ("cutout", 0.8, 8)],
        [("sharpness", 0.0, 8), ("shear_x", 0.4, 0)],
        [("shear_y", 1.0, 2), (IN_BOXES, 0.6, 6)],
        [("rotate", 0.6, 10), ("color", 1.0, 6)],
    ]
    factors = {"color": 0.1 + 1.8 * 0.6, "sharpness": 0.1 + 1.8 * 0.8}  # _enhance_level_to_arg
    for steps, theirs in zip(BOXES, v0, strict=True):
        for step, (name, probability, level) in zip(steps, theirs, strict=True):
            assert (step.name, step.probability) == (name, probability)
            strength = (factors[name] - 1) / 0.9 if name in factors else level / 10
            assert step.strength == pytest.approx(strength)


def test_autoaugment_draws_a_line_its_chances_and_signs():
    draw, config, lines = (
        random.Random(0),
        PolicyConfig(policy="autoaugment"),
        collections.Counter(),
    )
    for _ in range(2000):
        drawn = draw_operations(config, draw, boxes=True)
        lines[tuple((x.name, round(x.strength, 3)) for x in drawn)] += 1
    assert lines[(("rotate", 1.0), ("color", 0.2))] == pytest.approx(120, abs=45)  # .2 * .6 / 2
    assert lines[(("rotate", -1.0), ("color", 0.2))] == pytest.approx(120, abs=45)
    assert lines[(("color", 0.2),)] == pytest.approx(160, abs=45)  # .2 * .4
    assert lines[(("shear_y", 0.2), (IN_BOXES, -0.6))] == pytest.approx(100, abs=40)
    assert not any("sharpness" in str(line) for line in lines)
    masks = draw_operations(config, random.Random(3), boxes=False)
    assert len(MASKS) == 25 and all(abs(x.strength) <= 1 for x in masks)
    names = {x.name for part in MASKS for x in part}
    assert names <= {*GEOMETRIC, *COLOURS}  # nothing in boxes, where there are none
    assert MASKS[0] == (Operation("posterize", 8 / 9, 0.4), Operation("rotate", 1.0, 0.6))


def test_without_a_policy_nothing_is_drawn():
    draw = random.Random(5)
    before = draw.getstate()
    assert draw_operations(PolicyConfig(), draw, boxes=True) == []
    assert draw.getstate() == before


@pytest.mark.parametrize(
    "values, match",
    [
        (
            {"randaugment_magnitude": 5},
            "randaugment_magnitude is given, but augment.policy is none",
        ),
        ({"policy": "autoaugment", "randaugment_ops": 3}, "augment.policy is autoaugment: set it"),
        ({"policy": "randaugment", "randaugment_magnitude": 31}, "give 0 to 30"),
        ({"policy": "randaugment", "randaugment_ops": 0}, "give a number above 0"),
    ],
)
def test_settings_are_checked(values, match):
    with pytest.raises(ValueError, match=match):
        PolicyConfig(**values)
    assert PolicyConfig(policy="randaugment", randaugment_magnitude=15).randaugment_ops == 2
