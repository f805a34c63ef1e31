"""Boxes, keypoints and masks stay on the pixels that they are about; only pixels judge."""

from __future__ import annotations

import random

import annotated
import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv
from torchvision.tv_tensors import BoundingBoxes, Image, KeyPoints

from downstream.detection.data import geometry
from downstream.detection.data.mixing import mix

RED, GREEN, BLUE = (220, 20, 20), (20, 200, 20), (20, 20, 220)
CROPS = 400


def drawn(height=50, width=80, box=(20, 10, 52, 31), points=((30, 12), (45, 25))):
    """A red rectangle on white with a green and a blue pixel, its box, keypoints and mask."""
    pixels = annotated.canvas(height, width)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = RED
    for (x, y), colour in zip(points, (GREEN, BLUE), strict=True):
        pixels[y, x] = colour
    mask = np.zeros((1, height, width), np.uint8)
    mask[0, y1:y2, x1:x2] = 1
    return geometry.make_sample(
        torch.from_numpy(pixels).permute(2, 0, 1),
        torch.tensor([box], dtype=torch.float32),
        torch.tensor([4]),
        torch.tensor([[(x + 0.5, y + 0.5, 2.0) for x, y in points]]),
        torch.from_numpy(mask),
    )


def pixels_of(sample) -> np.ndarray:
    return sample.image.permute(1, 2, 0).numpy()


def where(pixels: np.ndarray, colour) -> list[float] | None:
    """Centre of the one pixel of a colour, continuous x and y."""
    rows, columns = np.nonzero((pixels == colour).all(2))
    assert len(rows) <= 1
    return [columns[0] + 0.5, rows[0] + 0.5] if len(rows) else None


def check_exactly(sample, *, swapped=False) -> None:
    """What is drawn is where box, mask and keypoints say, to the last bit."""
    pixels = pixels_of(sample)
    coloured = (pixels != 255).any(2) & (pixels != geometry.MEAN_COLOUR).any(2)
    assert sample.boxes.tolist() == [annotated.around(coloured)]
    assert annotated.around(sample.masks[0].numpy() == 1) == annotated.around(coloured)
    for i, colour in enumerate((BLUE, GREEN) if swapped else (GREEN, BLUE)):
        place = where(pixels, colour)
        assert sample.keypoints[0, i].tolist() == (place or [0, 0])
        assert sample.visibility[0, i] == (2 if place else 0)
    for part in (sample.boxes, sample.keypoints):
        assert part.canvas_size == sample.size == tuple(pixels.shape[:2])


def test_flip():
    """torchvision's own would put the keypoints a pixel too far left and not swap them."""
    sample = drawn()
    check_exactly(sample)
    check_exactly(geometry.flip(sample, []))
    check_exactly(geometry.flip(sample, [(0, 1)]), swapped=True)
    twice = geometry.flip(geometry.flip(sample, [(0, 1)]), [(0, 1)])
    assert torch.equal(twice.image, sample.image) and torch.equal(twice.keypoints, sample.keypoints)
    theirs = tv.horizontal_flip(KeyPoints(sample.keypoints, canvas_size=sample.size))
    assert (geometry.flip(sample, []).keypoints[..., 0] - theirs[..., 0] == 1).all()  # the trap


def test_pad():
    sample = geometry.pad(drawn(), 7, 11, (90, 120))
    check_exactly(sample)
    assert pixels_of(sample)[0, 0].tolist() == list(geometry.MEAN_COLOUR)
    assert sample.masks.sum() == 32 * 21 and sample.masks.max() == 1


@pytest.mark.parametrize(
    "top, left, size", [(0, 0, (50, 80)), (5, 10, (40, 60)), (14, 26, (12, 20)), (3, 0, (30, 48))]
)
def test_crop(top, left, size):
    """Whole, around the box, within it (one keypoint lost), through its right side."""
    check_exactly(geometry.crop(drawn(), top, left, size))


def test_crop_drops_boxes_by_their_centre():
    sample = drawn(box=(20, 10, 52, 31))  # centre 36, 20.5
    assert len(geometry.crop(sample, 0, 36, (50, 40)).labels) == 0  # on the edge
    cut = geometry.crop(sample, 0, 35, (50, 40))
    assert cut.boxes.tolist() == [[0, 10, 17, 31]] and len(cut.weights) == 1
    lost = geometry.crop(sample, 0, 60, (50, 20))
    assert lost.boxes.shape == (0, 4) and lost.keypoints.shape == (0, 2, 2)
    assert lost.visibility.shape == (0, 2) and lost.labels.dtype == torch.int64


@pytest.mark.parametrize("size", [(100, 160), (25, 40), (64, 64), (33, 77), (50, 80)])
def test_resize(size):
    """The picture's edges in float64, and where half of the colour is."""
    sample = drawn(box=(20, 10, 52, 31))
    resized = geometry.resize(sample, size)
    sx, sy = np.float64(size[1]) / 80, np.float64(size[0]) / 50
    expected = [20 * sx, 10 * sy, 52 * sx, 31 * sy]
    assert np.allclose(resized.boxes.numpy(), [expected], atol=1e-4)
    middle = pixels_of(resized)[..., 1] < (255 + RED[1]) / 2
    assert np.abs(np.array(annotated.around(middle)) - expected).max() <= 0.76
    assert np.abs(np.array(annotated.around(resized.masks[0].numpy() == 1)) - expected).max() <= 1
    points = np.array([[30.5, 12.5], [45.5, 25.5]]) * (sx, sy)
    assert np.allclose(resized.keypoints[0].numpy(), points, atol=1e-4)


def test_keypoints_that_are_not_labeled_stay_at_0():
    sample = drawn()
    sample.visibility[0, 1] = 0
    for changed in (
        geometry.flip(sample, []),
        geometry.pad(sample, 5, 5, (70, 100)),
        geometry.crop(sample, 2, 2, (45, 70)),
        geometry.resize(sample, (99, 99)),
    ):
        assert changed.keypoints[0, 1].tolist() == [0, 0] and changed.visibility[0, 1] == 0
        assert changed.keypoints[0, 0].min() > 0


def test_mix_is_the_weighted_sum():
    """Zhang et al. 2019, section 3.1, against float64."""
    first, second = drawn(50, 80), drawn(70, 60, box=(1, 2, 30, 40), points=((5, 5), (6, 30)))
    mixed = mix(first, second, 0.3)
    canvas = np.zeros((70, 80, 3))
    canvas[:50, :80] += 0.3 * pixels_of(first).astype(np.float64)
    canvas[:70, :60] += 0.7 * pixels_of(second).astype(np.float64)
    assert np.abs(pixels_of(mixed) - canvas).max() <= 0.5 + 1e-4
    assert mixed.boxes.tolist() == [[20, 10, 52, 31], [1, 2, 30, 40]]
    assert mixed.boxes.canvas_size == (70, 80) and mixed.labels.tolist() == [4, 4]
    assert mixed.weights.tolist() == pytest.approx([0.3, 0.7])
    assert mixed.keypoints.shape == (2, 2, 2) and mixed.visibility.shape == (2, 2)
    around = [annotated.around(mask.numpy() == 1) for mask in mixed.masks]
    assert mixed.masks.shape == (2, 70, 80) and around == [[20, 10, 52, 31], [1, 2, 30, 40]]


def test_crop_windows_overlap_as_drawn():
    """Sides, aspect, and a box whose centre is inside; distributed as torchvision's."""
    boxes = np.array([[20.0, 10, 52, 31], [60, 30, 78, 49]])
    draw, ours = random.Random(0), []
    for _ in range(CROPS):
        window = geometry.crop_window(draw, (50, 80), boxes)
        ours.append(window or (0, 0, 0, 0))
        if window is not None:
            top, left, h, w = window
            assert 0 <= top <= 50 - h and 0 <= left <= 80 - w
            assert 24 - 1 <= w <= 80 and 15 - 1 <= h <= 50 and 0.5 <= w / h <= 2
            cx, cy = boxes[:, [0, 2]].mean(1), boxes[:, [1, 3]].mean(1)
            assert ((left < cx) & (cx < left + w) & (top < cy) & (cy < top + h)).any()
    torch.manual_seed(0)
    peer = v2.RandomIoUCrop()
    inputs = [
        Image(torch.zeros(3, 50, 80)),
        BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=(50, 80)),  # type: ignore[call-overload]
    ]
    names = ("top", "left", "height", "width")
    theirs = [
        [p.get(name, 0) for name in names] for p in (peer.make_params(inputs) for _ in range(CROPS))
    ]
    mine, other = np.array(ours, float), np.array(theirs, float)
    error = np.sqrt((mine.var(0) + other.var(0)) / CROPS)
    assert (np.abs(mine.mean(0) - other.mean(0)) < 4 * error + 0.3).all()  # theirs round down
    kept = [(windows == 0).all(1).mean() for windows in (mine, other)]
    assert abs(kept[0] - kept[1]) < 0.1


@pytest.mark.parametrize("least", [0.3, 0.7, 0.9])
def test_crop_windows_reach_the_overlap(monkeypatch, least):
    monkeypatch.setattr(geometry, "OVERLAPS", (least, None))
    box = np.array([[20.0, 10, 52, 31]])
    windows = [geometry.crop_window(random.Random(i), (50, 80), box) for i in range(300)]
    found = [window for window in windows if window is not None]
    assert found or least == 0.9
    for top, left, h, w in found:
        rows, columns = np.mgrid[:50, :80] + 0.5
        inside = (rows > top) & (rows < top + h) & (columns > left) & (columns < left + w)
        boxed = (rows > 10) & (rows < 31) & (columns > 20) & (columns < 52)
        assert (inside & boxed).sum() / (inside | boxed).sum() >= least


def test_expand_places_the_picture_anywhere():
    sizes, places = [], []
    for i in range(300):
        sample = geometry.expand(drawn(), random.Random(i), 4)
        check_exactly(sample)
        if sample.size != (50, 80):
            sizes.append(sample.size[0] / 50)
            places.append(sample.boxes[0, :2].numpy() - (20, 10))
    assert 110 < len(sizes) < 190 and 1 <= min(sizes) < 1.2 and 3.7 < max(sizes) <= 4
    assert (np.min(places, 0) < (15, 10)).all() and (np.max(places, 0) > (120, 75)).all()


def test_colour_leaves_boxes_and_shape():
    sample = drawn()
    assert torch.equal(geometry.distort(sample, random.Random(0), 0).image, sample.image)
    views = [geometry.distort(sample, random.Random(i), 1) for i in range(50)]
    assert all(torch.equal(view.boxes, sample.boxes) for view in views)
    assert all(view.image.dtype == torch.uint8 for view in views)
    grey = sample.image.float().mean(0).to(torch.uint8).expand(3, -1, -1)
    for i in range(20):  # colours are not swapped and no tint comes in
        view = geometry.distort(
            geometry.make_sample(grey, sample.boxes, sample.labels), random.Random(i), 1
        )
        assert (view.image.float() - view.image.float().mean(0)).abs().max() <= 1.5
    reds = torch.stack([view.image[:, 20, 30].float() for view in views])
    assert reds.std(0).min() > 5
