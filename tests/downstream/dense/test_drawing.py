"""Texts beside boxes hide none of them; legends say what is to be seen."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from downstream.dense.drawing import HIDDEN, colour_of, draw_boxes, legend_of, with_legend

NAMES = ["cell", "a very long name of a class", "dog"]
GREY = np.full((200, 300, 3), 128, np.uint8)


def filled(drawn: np.ndarray, label: int) -> np.ndarray:
    """bool [h, w]: what has the colour of a class."""
    return (drawn == np.array(colour_of(label))).all(-1)


def test_a_box_alone_has_its_text_above_it():
    drawn = draw_boxes(GREY, np.array([[50.0, 60, 120, 110]]), [0], NAMES, [0.5])
    changed = (drawn != GREY).any(-1)
    assert changed[45:59, 51:90].mean() > 0.7  # text and its ground
    assert not changed[62:109, 52:119].any()  # all of the inside is to be seen


@pytest.mark.parametrize("seed", range(5))
def test_texts_hide_no_box(seed):
    draw = np.random.default_rng(seed)
    corners = draw.integers((0, 0), (270, 170), (40, 2))
    boxes = np.concatenate([corners, corners + draw.integers(4, 30, (40, 2))], 1)
    labels = draw.integers(0, 3, 40).tolist()
    image = Image.fromarray(GREY.copy())
    for box, label in reversed(list(zip(boxes.tolist(), labels, strict=True))):
        ImageDraw.Draw(image).rectangle(box, outline=colour_of(label))
    drawn = draw_boxes(GREY, boxes.astype(float), labels, NAMES, np.linspace(1, 0.1, 40).tolist())
    hidden = (drawn != np.asarray(image)).any(-1)
    assert hidden.any()
    shares = [hidden[y1 : y2 + 1, x1 : x2 + 1].mean() for x1, y1, x2, y2 in boxes]
    assert max(shares) <= 2 * HIDDEN and np.mean(shares) < HIDDEN / 2


def test_a_legend_is_below_and_wraps():
    names = [f"class {i}" for i in range(12)]
    drawn = with_legend(GREY, legend_of(names), "scores from 0.3")
    assert (drawn[:200, :300] == GREY).all() and drawn.shape[1] == 300
    strip = drawn[200:]
    for i in range(12):
        assert filled(strip, i).sum() >= 100, i
    one = with_legend(GREY, legend_of(names[:1]))
    assert 0 < len(one) - 200 < len(strip) / 3
    assert with_legend(GREY, []) is GREY


def test_a_narrow_picture_becomes_as_wide_as_its_legend():
    narrow = GREY[:, :9]
    drawn = with_legend(narrow, [(NAMES[1], (1, 2, 3))])
    assert (drawn[:200, :9] == narrow).all() and (drawn[:200, 9:] == 255).all()
    assert drawn.shape[1] > 100
