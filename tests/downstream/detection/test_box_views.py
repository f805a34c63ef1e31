"""Views: pure functions whose boxes enclose what they are about, and all that comes with them."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace

import annotated
import numpy as np
import pytest
import torch

from downstream.detection.config import BoxAugmentConfig
from downstream.detection.data.boxes import open_boxes
from downstream.detection.data.transforms import EvalBoxView, TrainBoxView, load, view_size
from ssld.data.decode import Unreadable

RED = (220, 20, 20)
S1 = BoxAugmentConfig(resize="longer", sizes=[96, 128], test_size=96, scale=(0.8, 1.2))
S3 = replace(S1, scale=(0.5, 2.0), policy="autoaugment")
S4 = replace(S3, policy="randaugment")
YOLO = BoxAugmentConfig(
    resize="square", sizes=[64, 96, 128], test_size=128, colour=0.5, expand=4, crop=True, mixup=1.5
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Four pictures of one to three rectangles, one without, one box that is crowd."""
    folder = tmp_path_factory.mktemp("rectangles")
    layout = {
        0: [[8, 6, 40, 30]],
        1: [[4, 4, 30, 20], [40, 30, 30, 25]],
        2: [],
        3: [[10, 10, 20, 20], [60, 5, 15, 50], [5, 40, 30, 15]],
    }
    boxes = [(10 * (i + 1), 3 + 4 * (i % 2), bbox) for i, found in layout.items() for bbox in found]
    path = annotated.coco(folder, boxes, sizes=[(60, 80)] * 4)
    annotated.edit(path, "annotations", 5, iscrowd=1)
    for i, found in layout.items():
        pixels = annotated.canvas(60, 80)
        for x, y, w, h in found:
            pixels[y : y + h, x : x + w] = RED
        annotated.save(folder / f"{i}.png", pixels)
    return open_boxes(str(path))


def same(one, other) -> bool:
    (image, target), (image2, target2) = one, other
    return torch.equal(image, image2) and all(
        torch.equal(target[k], target2[k]) for k in ("boxes", "labels", "weights")
    )


PLAIN = BoxAugmentConfig(sizes=[40, 60, 80])
MOSAICS = [replace(x, mosaic=0.7) for x in (PLAIN, YOLO, S3)]


@pytest.mark.parametrize("augment", [YOLO, PLAIN, S1, S3, S4, *MOSAICS])
def test_a_view_depends_on_seed_id_view_and_batch_only(source, augment):
    make = TrainBoxView(augment, seed=1)
    first = [make(source, i, 5, 7) for i in range(4)]
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    again = [TrainBoxView(augment, seed=1)(source, i, 5, 7) for i in reversed(range(4))][::-1]
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert before[2] == np.random.get_state()[1].tolist()
    assert any(not same(first[i], make(source, i, 6, 7)) for i in range(4))
    assert any(not same(first[i], TrainBoxView(augment, seed=2)(source, i, 5, 7)) for i in range(4))


def test_types_and_sizes(source):
    make = TrainBoxView(YOLO, seed=0)
    for view in range(10):
        shapes = {make(source, i, view, view)[0].shape for i in range(4)}
        assert shapes == {(make.batch_size_px(view), make.batch_size_px(view), 3)}
    assert {make.batch_size_px(batch) for batch in range(50)} == {64, 96, 128}
    image, target = make(source, 3, 0, 0)
    assert image.dtype == torch.uint8 and image.is_contiguous() and type(image) is torch.Tensor
    assert all(type(target[k]) is torch.Tensor for k in ("boxes", "labels", "weights"))
    assert target["boxes"].dtype == target["weights"].dtype == torch.float32
    assert target["labels"].dtype == torch.int64 and target["size"] == (60, 80)
    shorter = TrainBoxView(BoxAugmentConfig(sizes=[30, 60]), 0)
    assert {shorter(source, 0, view, 0)[0].shape for view in range(20)} == {
        (30, 40, 3),
        (60, 80, 3),
    }


@pytest.mark.parametrize("resize", ["shorter", "square", "longer"])
def test_boxes_enclose_the_colour_through_the_whole_chain(source, resize):
    """One rectangle, so that what is red is what the box must enclose; without mixup."""
    scale = (0.8, 1.2) if resize == "longer" else (1, 1)
    augment = BoxAugmentConfig(
        resize=resize, sizes=[90, 120], longest=None, expand=4, crop=True, colour=0, scale=scale
    )
    make = TrainBoxView(augment, seed=0)
    seen = 0
    for view in range(150):
        image, target = make(source, 0, view, view)
        red = (image[..., 0] > 150) & (image[..., 1] < 70)
        if len(target["boxes"]) == 0 or red.sum() < 30:
            continue
        seen += 1
        (box,) = target["boxes"].tolist()
        # The colour fades over as many px as the picture was enlarged by.
        blur = 1 + max(image.shape[:2]) / 60
        assert np.abs(np.array(annotated.around(red.numpy())) - box).max() <= blur
    assert seen > 100


@pytest.mark.parametrize("augment", [S1, S3, S4])
def test_views_with_scale_jitter_are_squares_of_the_batch(source, augment):
    make, counts = TrainBoxView(augment, seed=0), set()
    for view in range(12):
        side = make.batch_size_px(view)
        for i in range(4):
            image, target = make(source, i, view, view)
            assert image.shape == (side, side, 3) and image.dtype == torch.uint8
            boxes = target["boxes"]
            counts.add(len(boxes))
            assert (boxes >= 0).all() and (boxes <= side).all()
            assert (boxes[:, 2:] - boxes[:, :2] >= 1).all()
    assert counts >= {0, 1, 2}


def test_scale_jitter_is_of_the_longer_side(source):
    """A red rectangle of 40 x 30 px in an image of 60 x 80 has half of a view's side at scale 1."""
    make, widths = TrainBoxView(replace(S1, sizes=[120], flip=0), 0), []
    for view in range(200):
        box = make(source, 0, view, 0)[1]["boxes"][0]
        if box[2] < 120 and box[0] > 0:
            widths.append((box[2] - box[0]).item() / 60)
    assert 0.8 <= min(widths) < 0.83 and 1.17 < max(widths) <= 1.2 and len(widths) > 100
    exact = TrainBoxView(replace(S1, sizes=[160], scale=(1.0, 1.0), flip=0), 0)(source, 0, 0, 0)
    assert exact[0][:120].shape == (120, 160, 3)
    assert (exact[0][120:] == torch.tensor([124, 116, 104])).all()
    assert exact[1]["boxes"].tolist() == [[16, 12, 96, 72]]


def test_settings_of_a_policy_come_back_from_json():
    view = json.loads(json.dumps(asdict(S4)))
    assert asdict(BoxAugmentConfig(**view)) == {**asdict(S4), "scale": [0.5, 2.0]}


def test_mixup_until_an_epoch(source):
    augment = BoxAugmentConfig(resize="square", sizes=[64], mixup=1.5, mixup_epochs=3, flip=0)
    make = TrainBoxView(augment, seed=0)
    weights = [make(source, 1, view, 0)[1]["weights"] for view in range(6)]
    assert all((weights[view][:2] < 1).all() for view in range(3))
    assert all(weights[view].tolist() == [1, 1] for view in range(3, 6))
    counts = {len(make(source, 1, view, 0)[1]["weights"]) for view in range(3)}
    partners = TrainBoxView(BoxAugmentConfig(resize="square", sizes=[64], mixup=1.5, flip=0), 0)
    counts |= {len(partners(source, 1, view, 0)[1]["weights"]) for view in range(30)}
    assert counts == {2, 3, 4}  # with the image without boxes, with one box, with two
    ratios = [partners(source, 0, view, 0)[1]["weights"][0].item() for view in range(400)]
    assert abs(np.mean(ratios) - 0.5) < 0.05  # Beta(1.5, 1.5): variance 1 / 16
    assert abs(np.var(ratios) - 1 / 16) < 0.01


def test_crowd_boxes_are_not_trained_on(source):
    assert len(source.boxes(3).labels) == 3 and len(load(source, 3).labels) == 2
    assert len(EvalBoxView()(source, 3)[1]["labels"]) == 2


def test_what_becomes_too_small_is_dropped_with_all_that_is_its(tmp_path):
    boxes = [(10, 3, [5, 5, 2, 30]), (10, 7, [20, 20, 20, 20])]
    source = open_boxes(str(annotated.coco(tmp_path, boxes, sizes=[(60, 80)])))
    target = TrainBoxView(BoxAugmentConfig(sizes=[20], flip=0), 0)(source, 0, 0, 0)[1]
    assert target["labels"].tolist() == [1] and len(target["weights"]) == 1
    sx, sy = 27 / 80, 20 / 60  # the longer side is rounded
    expected = [[20 * sx, 20 * sy, 40 * sx, 40 * sy]]
    assert np.allclose(target["boxes"].numpy(), expected)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_tiny_images(tmp_path, side):
    """torchvision's RandomIoUCrop divides by zero on them."""
    path = annotated.coco(tmp_path, [(10, 3, [0, 0, side, side])], sizes=[(side, side)])
    source = open_boxes(str(path))
    for view in range(30):
        image, target = TrainBoxView(YOLO, 0)(source, 0, view, 0)
        assert image.shape[0] in YOLO.sizes and torch.isfinite(target["boxes"]).all()


def test_keypoints_come_with_the_target(tmp_path):
    path = annotated.coco(tmp_path, [(10, 3, [5, 5, 20, 30])])
    annotated.edit(path, "categories", 0, keypoints=["left", "right"])
    annotated.edit(path, "annotations", 0, keypoints=[6, 7, 2, 20, 9, 1])
    source = open_boxes(str(path))
    target = TrainBoxView(BoxAugmentConfig(sizes=[40], flip=1), 0)(source, 0, 0, 0)[1]
    assert target["keypoints"].tolist() == [[[60 - 20.5, 9.5, 1], [60 - 6.5, 7.5, 2]]]


def test_evaluation_view(source):
    image, target = EvalBoxView()(source, 1)
    assert image.shape == (60, 80, 3) and target["size"] == (60, 80)
    assert torch.equal(image.permute(2, 0, 1), load(source, 1).image)
    assert (target["boxes"].numpy() == source.boxes(1).xyxy).all()


@pytest.mark.parametrize(
    "size, side, longest, expected",
    [
        ((480, 640), 800, 1333, (800, 1067)),  # detectron2's sizes for COCO
        ((640, 480), 800, 1333, (1067, 800)),
        ((300, 1000), 800, 1333, (400, 1333)),
        ((300, 1000), 800, None, (800, 2667)),
        ((1, 5000), 800, 1333, (1, 1333)),
    ],
)
def test_sizes_of_views(size, side, longest, expected):
    augment = BoxAugmentConfig(longest=longest)
    assert view_size(size, side, augment) == expected


@pytest.mark.parametrize(
    "factor, longest, expected",
    [
        (0.5, 1333, (400, 533)),  # of 800 x 1067
        (1.5, 1333, (1200, 1600)),
        (1.5, 900, (1013, 1350)),  # the longer side's limit grows, too
        (0.001, 1333, (1, 1)),
    ],
)
def test_sizes_of_scaled_views(factor, longest, expected):
    augment = BoxAugmentConfig(longest=longest, sizes=[800])
    assert view_size((480, 640), 800, augment, factor) == expected


def test_sizes_of_views_by_the_longer_side():
    augment = BoxAugmentConfig(resize="longer", longest=None)
    assert view_size((480, 640), 320, augment) == (240, 320)
    assert view_size((640, 480), 320, augment, 1.25) == (400, 300)
    assert view_size((1, 640), 320, augment) == (1, 320)


def test_sizes_of_scaled_square_views():
    augment = BoxAugmentConfig(resize="square")
    assert view_size((480, 640), 320, augment, 1.25) == (400, 400)
    assert view_size((480, 640), 320, augment, 0.001) == (1, 1)


def test_an_image_that_changed_since_the_start(tmp_path):
    path = annotated.coco(tmp_path, [(10, 3, [5, 5, 20, 30])])
    source = open_boxes(str(path))
    annotated.save(tmp_path / "0.png", annotated.canvas(60, 60))
    with pytest.raises(Unreadable, match="has 60 x 60 px, its boxes are for 60 x 40"):
        EvalBoxView()(source, 0)


@pytest.mark.parametrize(
    "values, match",
    [
        ({"sizes": []}, "augment.sizes"),
        ({"sizes": [0]}, "augment.sizes"),
        ({"test_size": 0}, "augment.test_size"),
        ({"longest": 700}, "augment.longest is 700"),
        ({"flip": 2}, "augment.flip"),
        ({"scale": (0.5, 2)}, "augment.scale is .*, but augment.resize is shorter: set that to l"),
        ({"resize": "square", "scale": (1, 2)}, "but augment.resize is square"),
        (
            {"resize": "longer", "sizes": [640], "longest": 900},
            "augment.longest is 900, but augment.resize is lon",
        ),
        ({"resize": "longer", "scale": (2, 1)}, "augment.scale is .*: give smallest <= largest"),
        ({"resize": "longer", "scale": (0, 1)}, "augment.scale is .*: give a number above 0"),
        ({"colour": -1}, "augment.colour"),
        ({"expand": 0.5}, "augment.expand"),
        ({"mixup": -1}, "augment.mixup"),
        ({"mixup_epochs": -1}, "augment.mixup_epochs"),
        ({"mosaic": 1.5}, "augment.mosaic is 1.5"),
        ({"mosaic_epochs": 3}, "augment.mosaic_epochs is 3, but augment.mosaic is 0, which is off"),
    ],
)
def test_settings_are_checked(values, match):
    with pytest.raises(ValueError, match=match):
        BoxAugmentConfig(**values)
