"""Boxes lie on what they were drawn around, however EXIF turns the picture. Only pixels judge."""

from __future__ import annotations

import annotated
import numpy as np
import pytest

from downstream.detection.data.boxes import open_boxes
from downstream.detection.data.frames import turn_boxes, turn_points
from downstream.detection.data.transforms import load
from ssld.common.errors import InputError
from ssld.data.decode import decode

RECTANGLE, POINT = (slice(6, 15), slice(21, 33)), (3, 8)
UPRIGHT_BOX = [21, 6, 33, 15]


def picture(height=40, width=60, rectangle=True) -> np.ndarray:
    """A red rectangle, or one blue pixel."""
    pixels = annotated.canvas(height, width)
    if rectangle:
        pixels[RECTANGLE] = (255, 0, 0)
    else:
        pixels[POINT] = (0, 0, 255)
    return pixels


def make(folder, orientations, *, frame, square=()):
    """A set of the same picture, annotated in the stored or the upright frame by its pixels."""
    images, boxes = [], []
    for i, orientation in enumerate(orientations):
        upright = picture(*((50, 50) if i in square else (40, 60)))
        stored = annotated.save(folder / f"{i}.png", upright, orientation)
        seen = stored if frame == "stored" else upright
        x1, y1, x2, y2 = annotated.around(seen)
        h, w = seen.shape[:2]
        images.append({"id": i, "file_name": f"{i}.png", "height": h, "width": w})
        boxes.append((i, 3, [x1, y1, x2 - x1, y2 - y1]))
    folder.mkdir(exist_ok=True)
    path = annotated.coco(folder / "json", boxes, images=images)
    return f"{path}::{folder}"


@pytest.mark.parametrize("frame", ["stored", "upright"])
def test_quarter_turns_tell_by_their_size_and_the_others_follow(tmp_path, frame):
    orientations = [1, 2, 3, 4, 5, 6, 7, 8, 6, 3]
    source = open_boxes(make(tmp_path / "set", orientations, frame=frame, square={8, 9}))
    for i in range(len(source)):
        sample = load(source, i)
        assert sample.boxes.tolist() == [UPRIGHT_BOX]
        assert annotated.around(sample.image.permute(1, 2, 0).numpy()) == UPRIGHT_BOX
    (line,) = [line for line in source.report.lines() if line.startswith("orientation: 9 images")]
    assert f"4 were annotated {'as stored' if frame == 'stored' else 'upright'}" in line
    assert "the size of 5 does not tell" in line


def test_without_a_sign_boxes_are_upright(tmp_path):
    source = open_boxes(make(tmp_path / "set", [3, 2, 4, 6], frame="upright", square={3}))
    assert all(source.boxes(i).xyxy.tolist() == [UPRIGHT_BOX] for i in range(4))


def test_pictures_that_disagree_are_each_turned_as_they_need(tmp_path):
    """Two tools drew one set."""
    upright = picture()
    stored = annotated.save(tmp_path / "0.png", upright, 6)
    annotated.save(tmp_path / "1.png", upright, 6)
    x1, y1, x2, y2 = annotated.around(stored)
    images = [
        {"id": 0, "file_name": "0.png", "height": 60, "width": 40},
        {"id": 1, "file_name": "1.png", "height": 40, "width": 60},
    ]
    boxes = [(0, 3, [x1, y1, x2 - x1, y2 - y1]), (1, 3, [21, 6, 12, 9])]
    path = annotated.coco(tmp_path / "json", boxes, images=images)
    source = open_boxes(f"{path}::{tmp_path}")
    assert [source.boxes(i).xyxy.tolist() for i in (0, 1)] == [[UPRIGHT_BOX]] * 2
    assert source.image_size(0) == source.image_size(1) == (40, 60)


def test_yolo_labels_are_upright(tmp_path):
    root = annotated.yolo(tmp_path, {"a": "0 0.45 0.2625 0.2 0.225"})
    annotated.save(root / "images/train/a.png", picture(), 6)
    assert np.allclose(open_boxes(f"{root}::train").boxes(0).xyxy, [UPRIGHT_BOX], atol=1e-5)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_points_turn_like_pixels(tmp_path, orientation):
    """The centre of one stored pixel goes to the centre of where `decode` puts that pixel."""
    stored = annotated.save(tmp_path / "x.png", picture(rectangle=False), orientation)
    upright = decode((tmp_path / "x.png").read_bytes())
    x1, y1, x2, y2 = annotated.around(stored)
    point = np.array([[[(x1 + x2) / 2, (y1 + y2) / 2]]])
    turned = turn_points(point, np.array([orientation]), np.array([[40, 60]]))
    x1, y1, x2, y2 = annotated.around(upright)
    assert turned.tolist() == [[[(x1 + x2) / 2, (y1 + y2) / 2]]] == [[[8.5, 3.5]]]


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_box_with_its_corners_crossed_stays_so(orientation):
    boxes = np.array([[5.0, 9, 3, 20], [5, 20, 9, 6]])
    turned = turn_boxes(boxes, np.full(2, orientation), np.array([[40, 60]] * 2))
    assert (turned[:, 2:] <= turned[:, :2]).any(1).all()


def test_half_the_set_is_of_another_size(tmp_path):
    path = make(tmp_path / "set", [1, 6, 1], frame="upright")
    for i in (1, 2):
        annotated.save(tmp_path / "set" / f"{i}.png", picture(20, 40))
    with pytest.raises(
        InputError, match="image '1.png' are 60 and 40, .* 40 and 20 .*1 more images"
    ):
        open_boxes(path)
    for i in (1, 2):
        annotated.save(tmp_path / "set" / f"{i}.png", picture(41, 60))
    report = open_boxes(path).report
    assert "the stated size of 2 images is off by 1 px: taken from the files" in report.remarks
