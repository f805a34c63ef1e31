"""What is drawn stays in its box, under its mask and on its keypoint through every operation of a
policy, at every strength and in both directions; only pixels and closed forms judge."""

from __future__ import annotations

import math
import random
from functools import partial

import annotated
import numpy as np
import pytest
import torch

from downstream.dense.operations import COLOURS, GEOMETRIC, cutout, move
from downstream.dense.policies import IN_BOXES, Operation
from downstream.detection.data import geometry
from downstream.detection.data.operations import move_in_boxes, operate

RED, GREEN, BLUE = (220, 20, 20), (20, 200, 20), (20, 20, 220)
HEIGHT, WIDTH = 50, 64
STRENGTHS = [sign * level / 10 for level in range(1, 11) for sign in (-1, 1)] + [-3.0, 3.0]
"""All levels, and RandAugment's largest magnitude."""
DOTS = ((24.5, 18.5), (38.5, 30.5))


def drawn(box=(18, 12, 46, 36), dots=DOTS, size=(HEIGHT, WIDTH)) -> geometry.Sample:
    """A red rectangle on white with a green and a blue dot of 5 x 5 px; box, keypoints and mask."""
    pixels, mask = annotated.canvas(*size), np.zeros((1, *size), np.uint8)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = RED
    for (x, y), colour in zip(dots, (GREEN, BLUE), strict=True):
        pixels[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3] = colour
    mask[0, y1:y2, x1:x2] = 1
    return geometry.make_sample(
        torch.from_numpy(pixels).permute(2, 0, 1),
        torch.tensor([box], dtype=torch.float32),
        torch.tensor([4]),
        torch.tensor([[(x, y, 2.0) for x, y in dots]]),
        torch.from_numpy(mask),
    )


def after(sample: geometry.Sample, name: str, strength: float, seed: int = 0) -> geometry.Sample:
    return operate(sample, Operation(name, strength), random.Random(seed))


def same(one: geometry.Sample, other: geometry.Sample) -> bool:
    parts = ("image", "boxes", "labels", "weights", "keypoints", "visibility", "masks")
    return all(torch.equal(getattr(one, x), getattr(other, x)) for x in parts)


def near(sample: geometry.Sample, *colours) -> np.ndarray:
    """bool [h, w]: nearer to one of the colours than to white or grey, half of a blend at most."""
    pixels = sample.image.permute(1, 2, 0).numpy().astype(float)
    apart = [np.abs(pixels - x).sum(2) for x in (*colours, (255,) * 3, (128,) * 3)]
    return np.argmin(apart, 0) < len(colours)


def closed_form(name: str, strength: float, points: np.ndarray) -> np.ndarray:
    """Where points, float64 [n, 2], go: a turn by 30 degrees about the middle, a shear of .3 at the
    upper left corner, a shift of 250 of 640 parts of the longer side."""
    x, y = points.T
    if name == "rotate":
        turn, (mx, my) = math.radians(30 * strength), (WIDTH / 2, HEIGHT / 2)
        cos, sin = math.cos(turn), math.sin(turn)
        moved = mx + cos * (x - mx) - sin * (y - my), my + sin * (x - mx) + cos * (y - my)
    elif name == "shear_x":
        moved = x + 0.3 * strength * y, y
    elif name == "shear_y":
        moved = x, y + 0.3 * strength * x
    else:
        by = round(250 / 640 * strength * WIDTH)
        moved = (x + by, y) if name == "translate_x" else (x, y + by)
    return np.stack(moved, 1)


@pytest.mark.parametrize("name", GEOMETRIC)
def test_what_is_drawn_stays_with_its_box_mask_and_keypoints(name):
    sample, limits = drawn(), np.array([WIDTH, HEIGHT])
    x1, y1, x2, y2 = sample.boxes[0].tolist()
    corners = np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])
    whole = 0
    for strength in STRENGTHS:
        moved = after(sample, name, strength)
        hull = closed_form(name, strength, corners)
        low, high = hull.min(0).clip(0, limits), hull.max(0).clip(0, limits)
        if (high <= low).any():
            assert len(moved.labels) == len(moved.boxes) == len(moved.masks) == 0
            assert len(moved.keypoints) == len(moved.visibility) == 0
            continue
        assert np.allclose(moved.boxes[0], [*low, *high], atol=1e-4)
        there = near(moved, RED, GREEN, BLUE)
        box, seen = moved.boxes[0].numpy(), np.array(annotated.around(there))
        assert (seen[:2] >= box[:2] - 1).all() and (seen[2:] <= box[2:] + 1).all()  # inside
        inner = hull.min(0) >= 0, hull.max(0) <= limits
        if all(x.all() for x in inner):  # a corner that is cut off leaves the rest of the box loose
            whole += 1
            assert np.abs(seen - box).max() <= 1.5  # tight
        assert (there != (moved.masks[0].numpy() == 1)).mean() < 0.02
        check_dots(moved, closed_form(name, strength, np.array(DOTS)))
    assert whole >= 4


def check_dots(moved: geometry.Sample, expected: np.ndarray) -> None:
    for i, (colour, point) in enumerate(zip((GREEN, BLUE), expected, strict=True)):
        margin = min(point.min(), (np.array([WIDTH, HEIGHT]) - point).min())
        assert moved.visibility[0, i] == (2 if margin >= 0 else 0)
        assert np.allclose(moved.keypoints[0, i], point if margin >= 0 else (0, 0), atol=1e-4)
        if margin >= 5:  # the whole dot is inside
            apart = np.abs(moved.image.permute(1, 2, 0).numpy().astype(float) - colour).sum(2)
            rows, columns = np.nonzero(apart < 120)
            assert np.abs(np.array([columns.mean(), rows.mean()]) + 0.5 - point).max() < 0.5


def test_what_comes_in_from_outside():
    everywhere = drawn(box=(0, 0, WIDTH, HEIGHT))
    for name in GEOMETRIC:
        moved = after(everywhere, name, 1.0)
        outside = moved.masks[0].numpy() == 0
        assert outside.sum() > 200
        grey = (moved.image.permute(1, 2, 0).numpy() == 128).all(2)
        assert (outside & ~grey).sum() <= 2 * (HEIGHT + WIDTH)  # a blend along the edge
        assert set(move(everywhere.masks, name, 1.0, outside=255).unique().tolist()) == {1, 255}


def test_no_strength_leaves_every_bit_alone():
    """And the innocent: with a strength something changes. Colours change nothing but colours."""
    sample = drawn()
    plain = {"autocontrast", "equalize", "invert"}
    for name in (*GEOMETRIC, *COLOURS, "cutout", IN_BOXES):
        if name not in plain:
            assert same(after(sample, name, 0.0), sample), name
        changed = any(not same(after(sample, name, 1.0, seed), sample) for seed in range(9))
        assert changed or name in ("autocontrast", "equalize", "solarize_add"), name
    for name in COLOURS:
        moved = after(sample, name, 1.0)
        assert moved.boxes is sample.boxes and moved.masks is sample.masks
        assert moved.keypoints is sample.keypoints and moved.labels is sample.labels


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2)])
def test_tiny_images_and_images_without_boxes(size):
    image = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(0))
    sample = geometry.make_sample(
        image.to(torch.uint8), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64),
        torch.zeros(0, 2, 3), torch.zeros(0, *size, dtype=torch.uint8),
    )  # fmt: skip
    for name in (*GEOMETRIC, *COLOURS, "cutout", IN_BOXES):
        for strength in (-3.0, 0.4, 3.0) if name in GEOMETRIC else (0.4, 3.0):
            moved = after(sample, name, strength)
            assert moved.image.shape == (3, *size) and moved.image.dtype == torch.uint8
            assert moved.masks.shape == (0, *size) and moved.boxes.shape == (0, 4)


def two_boxes() -> geometry.Sample:
    """Blue pixels one below the other in a tall box, and a low box beside it."""
    pixels, masks = (
        annotated.canvas(HEIGHT, WIDTH),
        torch.zeros(2, HEIGHT, WIDTH, dtype=torch.uint8),
    )
    pixels[10:40, 5:25] = RED
    pixels[15, 8], pixels[38, 8] = BLUE, BLUE
    pixels[20:28, 40:60] = GREEN
    masks[0, 10:40, 5:25], masks[1, 20:28, 40:60] = 1, 1
    return geometry.make_sample(
        torch.from_numpy(pixels).permute(2, 0, 1),
        torch.tensor([[5.0, 10, 25, 40], [40, 20, 60, 28]]),
        torch.tensor([4, 7]),
        torch.tensor([[(8.5, 15.5, 2.0), (8.5, 38.5, 1.0)], [(50.5, 24.5, 2.0), (0, 0, 0)]]),
        masks,
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_in_boxes_content_moves_and_the_box_stays(sign):
    sample = two_boxes()
    moved = move_in_boxes(sample, sign, 1.0, random.Random(0))  # by 120 / 640 of 64: 12 px
    assert moved.boxes.tolist() == [[5, 10, 25, 40]] and moved.labels.tolist() == [4]  # 8 px: gone
    before, now = (x.image.permute(1, 2, 0).numpy() for x in (sample, moved))
    taken, given = (slice(10, 28), slice(22, 40))[::sign]
    assert (now[given, 5:25] == before[taken, 5:25]).all()
    entered = slice(10, 22) if sign > 0 else slice(28, 40)
    assert (now[entered, 5:25] == 128).all() and (now[20:28, 40:60] == 128).all()
    boxes = np.zeros((HEIGHT, WIDTH), bool)
    boxes[10:40, 5:25] = boxes[20:28, 40:60] = True
    assert (now[~boxes] == before[~boxes]).all()
    assert moved.masks[0, entered].sum() == 0 and moved.masks[0, given, 5:25].all()
    kept, place = (0, 27.5) if sign > 0 else (1, 26.5)
    assert moved.visibility[0].tolist() == [2 * (kept == 0), 1 * (kept == 1)]
    assert moved.keypoints[0, kept].tolist() == [8.5, place]
    assert moved.keypoints[0, 1 - kept].tolist() == [0, 0]
    assert tuple(now[int(place), 8]) == BLUE


def test_each_box_has_its_own_chance():
    sample, counts = two_boxes(), np.zeros(2)
    for seed in range(300):
        moved = operate(sample, Operation(IN_BOXES, 0.2, 0.9), random.Random(seed))
        counts += [(moved.masks[i] != sample.masks[i]).any() for i in range(2)]
    assert (abs(counts - 90) < 25).all()  # a third of .9; deviation 8


def test_cutout_is_a_square_of_the_longer_side_about_any_pixel():
    sample, areas, hit = drawn(), [], np.zeros((HEIGHT, WIDTH), bool)
    draw = random.Random(0)
    for _ in range(300):
        changed = (cutout(sample.image, 0.4, draw) == 128).all(0).numpy()
        x1, y1, x2, y2 = annotated.around(changed)
        assert changed[y1:y2, x1:x2].all() and max(x2 - x1, y2 - y1) <= 8  # 2 x 40 / 640 of 64
        areas.append(changed.sum())
        hit |= changed
    assert max(areas) == 64 and min(areas) < 64 and hit.mean() > 0.98


def test_scale_jitter_keeps_what_is_cut():
    """Of an image of twice the side a quarter is seen; what is drawn there is where its box is."""
    sample, draw, cut, gone = drawn(size=(64, 64)), random.Random(0), 0, 0
    for _ in range(60):
        seen = geometry.in_square(sample, (128, 128), 64, draw)
        assert seen.size == (64, 64)
        there = near(seen, RED, GREEN, BLUE)
        gone += len(seen.labels) == 0
        if len(seen.labels):
            box = seen.boxes[0].numpy()
            assert np.abs(np.array(annotated.around(there)) - box).max() <= 1.5
            cut += (box == 0).any() or (box == 64).any()
        assert there.any() == (len(seen.labels) > 0) or there.sum() < 64
    assert cut > 20
    small = geometry.in_square(sample, (32, 32), 64, draw)
    assert small.size == (32, 32)
    assert small.boxes.tolist() == [[9, 6, 23, 18]]


def test_the_pixels_would_refuse_a_box_that_stayed():
    sample = drawn()
    moved = geometry.within(sample, partial(move, name="rotate", strength=1.0))
    seen = np.array(annotated.around(near(moved, RED, GREEN, BLUE)))
    assert np.abs(seen - sample.boxes[0].numpy()).max() > 4
