"""Four images as one, against a loop over pixels, and as a setting."""

from __future__ import annotations

from dataclasses import replace

import annotated
import numpy as np
import pytest
import torch

from downstream.detection.batches import BoxBatches
from downstream.detection.command import note_small
from downstream.detection.config import BoxAugmentConfig
from downstream.detection.data import geometry
from downstream.detection.data.boxes import open_boxes
from downstream.detection.data.mixing import mosaic
from downstream.detection.data.transforms import TrainBoxView
from ssld.data.unreadable import Unreadables

COLOURS = ((220, 20, 20), (20, 200, 20), (20, 20, 220), (200, 20, 200))
SQUARE = BoxAugmentConfig(resize="square", sizes=[64], longest=None, flip=0, mosaic=1)
SCALED = replace(SQUARE, resize="longer", scale=(0.5, 2.0))


def a_sample(draw: np.random.Generator) -> geometry.Sample:
    """Noise with two boxes, their masks, and two keypoints of each; one is not labeled."""
    height, width = draw.integers(5, 31, 2).tolist()
    corners = np.sort(draw.uniform(0, 1, (2, 2, 2)), axis=1) * (width, height)  # [box, corner, xy]
    points = draw.uniform(0, 1, (2, 2, 3)) * (width, height, 0) + (0, 0, 2)
    points[1, 1] = 0
    return geometry.make_sample(
        torch.from_numpy(draw.integers(0, 256, (3, height, width), dtype=np.uint8)),
        torch.from_numpy(corners.reshape(2, 4).astype(np.float32)),
        torch.from_numpy(draw.integers(0, 9, 2)),
        torch.from_numpy(points.astype(np.float32)),
        torch.from_numpy(draw.integers(0, 2, (2, height, width), dtype=np.uint8)),
    )


def by_hand(samples, centre, side):
    """Pixels and (label, box, keypoints, mask) of each box that is left; one at a time, float64."""
    (y, x), canvas, found = centre, np.empty((3, side, side), np.uint8), []
    canvas[:] = np.array([124, 116, 104])[:, None, None]
    for place, sample in zip(("ul", "ur", "ll", "lr"), samples, strict=True):
        height, width = sample.size
        top, left = (y - height if place[0] == "u" else y), (x - width if place[1] == "l" else x)
        there = [
            (i, j, i - top, j - left)
            for i in range(side)
            for j in range(side)
            if 0 <= i - top < height and 0 <= j - left < width
        ]
        for i, j, row, column in there:
            canvas[:, i, j] = sample.image[:, row, column].numpy()
        for k, box in enumerate(np.asarray(sample.boxes, np.float64)):
            moved = [min(side, max(0, v + o)) for v, o in zip(box, [left, top] * 2, strict=True)]
            if moved[0] >= moved[2] or moved[1] >= moved[3]:
                continue
            mask, points = np.zeros((side, side), np.uint8), []
            for i, j, row, column in there:
                mask[i, j] = sample.masks[k, row, column]
            seen_of = sample.visibility[k].tolist()
            for (px, py), seen in zip(sample.keypoints[k].tolist(), seen_of, strict=True):
                px, py = px + left, py + top
                kept = seen > 0 and 0 <= px <= side and 0 <= py <= side
                points.append((px, py, seen) if kept else (0, 0, 0))
            found.append((int(sample.labels[k]), moved, points, mask))
    return canvas, found


def test_against_a_loop_over_pixels():
    draw = np.random.default_rng(0)
    boxes = 0
    for _ in range(40):
        samples = [a_sample(draw) for _ in range(4)]
        centre = tuple(draw.integers(-10, 34, 2).tolist())  # of a canvas of 24: also beyond it
        canvas, found = by_hand(samples, centre, 24)
        made = mosaic(samples, centre, 24)
        assert (made.image.numpy() == canvas).all()
        assert made.labels.tolist() == [x[0] for x in found] and (made.weights == 1).all()
        boxes += len(found)
        if not found:
            assert made.boxes.shape == (0, 4) and made.masks.shape == (0, 24, 24)
            continue
        assert np.abs(made.boxes.numpy() - [x[1] for x in found]).max() < 1e-5
        points = torch.cat([made.keypoints, made.visibility[..., None]], -1).numpy()
        assert np.abs(points - [x[2] for x in found]).max() < 1e-5
        assert (made.masks.numpy() == [x[3] for x in found]).all()
    assert boxes > 100


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Four images, each of one colour on white, which is its class; the third is of 300 px."""
    folder = tmp_path_factory.mktemp("colours")
    sizes = [(60, 80), (64, 64), (200, 300), (50, 20)]
    boxes = [(10 * (i + 1), i, [w // 5, h // 4, w // 2, h // 2]) for i, (h, w) in enumerate(sizes)]
    names = dict(enumerate("abcd"))
    path = annotated.coco(folder, boxes, sizes=sizes, categories=names)
    for i, (_, _, (x, y, w, h)) in enumerate(boxes):
        pixels = annotated.canvas(*sizes[i])
        pixels[y : y + h, x : x + w] = COLOURS[i]
        annotated.save(folder / f"{i}.png", pixels)
    return open_boxes(str(path))


@pytest.mark.parametrize("augment", [SQUARE, SCALED, replace(SQUARE, resize="shorter")])
def test_each_box_is_full_of_its_own_colour(source, augment):
    make, seen = TrainBoxView(replace(augment, sizes=[128], flip=0.5), seed=0), 0
    for view in range(20):
        image, target = make(source, view % 4, view, 0)
        assert image.shape == (128, 128, 3)
        outside = np.ones((128, 128), bool)
        for box, label in zip(target["boxes"].numpy(), target["labels"].tolist(), strict=True):
            near = np.abs(image.numpy().astype(int) - COLOURS[label]).max(2) < 100
            (x1, y1), (x2, y2) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
            outside[max(0, y1 - 2) : y2 + 2, max(0, x1 - 2) : x2 + 2] = False
            if min(box[2] - box[0], box[3] - box[1]) > 6:
                seen += 1
                assert near[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].all()
        coloured = image.numpy().min(2) < 60
        assert not (coloured & outside).any()  # and none is without a box
    assert seen > 25


def test_where_images_meet(tmp_path):
    """Anywhere in the view: of square images the own one has a quarter of it in the mean."""
    path = annotated.coco(tmp_path, [(10, 3, [0, 0, 32, 32])], sizes=[(32, 32)] * 20)
    annotated.save(tmp_path / "0.png", np.zeros((32, 32, 3), np.uint8))
    source = open_boxes(str(path))
    make = TrainBoxView(replace(SQUARE, sizes=[32]), 0)
    black = [(make(source, 0, view, 0)[0] < 9).all(-1).double().mean() for view in range(150)]
    assert abs(np.mean(black) - 0.25) < 4 * np.std(black) / 150**0.5
    assert min(black) < 0.02 and max(black) > 0.75


def test_off_is_as_if_it_were_not_there(source):
    plain = TrainBoxView(replace(SCALED, mosaic=0), seed=3)
    ended = TrainBoxView(replace(SCALED, mosaic=1, mosaic_epochs=2), seed=3)
    for view in range(6):
        (image, target), (image2, target2) = (x(source, 1, view, 0) for x in (plain, ended))
        same = torch.equal(image, image2) and torch.equal(target["boxes"], target2["boxes"])
        assert same == (view >= 2)


def test_probability(source):
    make = TrainBoxView(replace(SQUARE, mosaic=0.3), seed=0)
    alone = TrainBoxView(replace(SQUARE, mosaic=0), seed=0)(source, 1, 0, 0)[0]
    same = [torch.equal(make(source, 1, view, 0)[0], alone) for view in range(80)]
    assert abs(np.mean(same) - 0.7) < 0.15


def test_mixup_after_it_is_of_one_size(source):
    """An image of 300 px is not laid beside a mosaic of 64 px, which would be made small."""
    augment = replace(SQUARE, mixup=1.5)
    counts = set()
    for view in range(20):
        target = TrainBoxView(augment, seed=0)(source, 1, view, 0)[1]
        mixed = target["boxes"][-1]  # the partner's
        sides = {0: (32, 24), 1: (32, 32), 2: (32, 21), 3: (13, 32)}[int(target["labels"][-1])]
        assert (mixed[2:] - mixed[:2]).numpy() == pytest.approx(sides, abs=1.5)
        counts.add(len(target["labels"]))
    assert max(counts) >= 4


def test_a_partner_that_cannot_be_read_is_the_one_that_is_counted(tmp_path):
    """Each image meets it some day: 29 of 30 sound ones would be taken for unreadable."""
    path = annotated.coco(tmp_path, [(10, 3, [5, 5, 20, 30])], sizes=[(40, 60)] * 30)
    (tmp_path / "7.png").write_bytes(b"")
    source = open_boxes(str(path))
    for settings in ({"mosaic": 1}, {"mosaic": 0, "mixup": 1.5}):
        make = BoxBatches([source], TrainBoxView(replace(SQUARE, **settings), 0))
        found, lost = Unreadables([source], 0.1), 0.0
        for view in range(10):
            rows = np.array([[0, i, view, 0] for i in range(0, 30, 5)], np.int64)
            batch = make(rows)
            assert batch.ids[1] == source.sample_id(5)
            found.add(batch.unreadable)
            lost += float(6 - batch.weight.sum())
        assert found.count == 1 and lost > 0
        (entry,) = found.entries.values()
        assert entry.sample_id == source.sample_id(7) and entry.location == source.location(7)
        assert entry.reason == "the file is empty"


def test_boxes_that_a_mosaic_makes_too_small_are_noted(tmp_path):
    """A flat image: 1.5 px of 1000 stay 1.5 when the shorter side of 100 px decides, else less."""
    boxes = [(10, 3, [5, 5, 50, 50]), (10, 3, [5, 5, 1.5, 50])]
    path = annotated.coco(tmp_path, boxes, sizes=[(100, 1000)])
    plain = BoxAugmentConfig(sizes=[100])
    for augment, expected in (
        (plain, []),
        (replace(plain, mosaic=0.5), ["in the smallest training views, dropped there"]),
        (replace(plain, mosaic=1, mosaic_epochs=9), ["in the smallest training views"]),
        (replace(plain, mosaic=1), ["in every training view, never learned from"]),
    ):
        source = open_boxes(str(path))
        note_small([source], augment)
        found = [str(x) for x in source.report.noticed if "1 px" in str(x)]
        assert len(found) == len(expected) and all(map(str.__contains__, found, expected)), found
