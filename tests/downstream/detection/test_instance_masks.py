"""Masks of objects: from outlines as files have them to the pixels that are trained on."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
from pathlib import Path
from typing import Any

import annotated
import numpy as np
import pytest
import torch
from faster_coco_eval import COCO

from downstream.dense.drawing import OPACITY, colour_of, draw_instances
from downstream.dense.outlines import decode, encode, read_outline, to_rle
from downstream.detection.batches import BoxBatches
from downstream.detection.config import BoxAugmentConfig
from downstream.detection.data import geometry
from downstream.detection.data.boxes import open_boxes
from downstream.detection.data.transforms import EvalBoxView, TrainBoxView, load
from ssld.common.errors import InputError

TRIANGLE = [10, 5, 40, 5, 10, 35]
SQUARE = [30, 20, 50, 20, 50, 38, 30, 38]
RED = (220, 20, 20)


def outlined(
    folder: Path, outlines: list[Any], *, boxes: list[list[float]] | None = None, **content: Any
) -> Path:
    """A set whose objects, all on its first image of 40 x 60 px, have these outlines; ... is none.
    Their boxes are around both TRIANGLE and SQUARE."""
    boxes = boxes or [[10, 5, 40, 33]] * len(outlines)
    path = annotated.coco(folder, [(10, 3, bbox) for bbox in boxes], **content)
    for j, outline in enumerate(outlines):
        if outline is not ...:
            annotated.edit(path, "annotations", j, segmentation=outline)
    return path


def pixels_of(source: Any, image: int = 0) -> np.ndarray:
    return decode(source.boxes(image).masks)


def inside(polygon: list[float], size=(40, 60), margin=0.75) -> tuple[np.ndarray, np.ndarray]:
    """Pixels whose centres are well inside, and well outside, of a convex polygon, float64: COCO's
    drawing may differ at its edge."""
    points = np.array(polygon, np.float64).reshape(-1, 2)
    ends = np.roll(points, -1, axis=0)
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    distances = []
    for (x1, y1), (x2, y2) in zip(points, ends, strict=True):
        cross = (x2 - x1) * (y - y1) - (y2 - y1) * (x - x1)
        distances.append(cross / np.hypot(x2 - x1, y2 - y1))
    least = np.min(distances, axis=0)
    return least > margin, least < -margin


def runs(mask: np.ndarray) -> list[int]:
    """Lengths of runs by a loop, column by column, first of zeros."""
    counts, last = [0], 0
    for value in mask.T.ravel().tolist():
        if value != last:
            counts, last = [*counts, 0], value
        counts[-1] += 1
    return counts


def ring() -> np.ndarray:
    mask = np.zeros((40, 60), np.uint8)
    mask[8:30, 12:44] = 1
    mask[14:20, 20:30] = 0
    return mask


@pytest.mark.parametrize(
    "outline",
    [
        [TRIANGLE],
        TRIANGLE,
        [[[10, 5], [40, 5], [10, 35]]],
        [[10, 5], [40, 5], [10, 35]],
        [TRIANGLE, SQUARE],
        [TRIANGLE, [1, 2, 3, 4], []],
        {"size": [40, 60], "counts": runs(ring())},
        {"size": [40, 60], "counts": encode(ring())["counts"].decode()},
    ],
    ids=["polygon", "flat", "points of polygons", "points", "two", "with a line", "runs", "text"],
)
def test_outlines_are_the_pixels_that_coco_gives_them(tmp_path, outline):
    path = outlined(tmp_path, [outline])
    (mask,) = pixels_of(open_boxes(str(path), masks=True))
    if isinstance(outline, dict):
        assert (mask == ring()).all()
    else:
        polygons = [TRIANGLE, SQUARE] if outline == [TRIANGLE, SQUARE] else [TRIANGLE]
        parts = [inside(polygon) for polygon in polygons]
        assert mask[np.any([part[0] for part in parts], axis=0)].all()
        assert not mask[np.all([part[1] for part in parts], axis=0)].any()
        annotated.edit(path, "annotations", 0, segmentation=polygons)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
    assert (coco.annToMask(coco.loadAnns([100])[0]) == mask).all()


def test_masks_are_only_read_where_they_are_asked_for(tmp_path):
    path = outlined(tmp_path, [[TRIANGLE], ..., "nonsense"])
    source = open_boxes(str(path))
    assert source.boxes(0).masks is None and not source.report.fixed
    with pytest.raises(InputError, match=r"annotations\[2\] .*: its segmentation is no outline"):
        open_boxes(str(path), masks=True)


def test_objects_without_a_mask_are_crowd_and_counted(tmp_path):
    outlines = [[TRIANGLE], ..., [], None, [[1, 2, 3, 4]], [[10.1, 5.1, 10.2, 5.1, 10.2, 5.2]]]
    path = outlined(tmp_path, [*outlines, [[-30, -30, -9, -30, -9, -9]], *[[SQUARE]] * 5])
    source = open_boxes(str(path), masks=True)
    found = {finding.what: finding for finding in source.report.fixed}
    assert {what: finding.count for what, finding in found.items()} == {
        "objects without an outline, taken as crowd": 4,
        "objects whose outline holds no pixel of the image, taken as crowd": 2,
    }
    boxes = source.boxes(0)
    assert boxes.crowd.tolist() == [False, *[True] * 6, *[False] * 5]
    assert annotated.around(decode(boxes.masks)[1] == 1) == [10, 5, 50, 38]  # its box
    assert found["objects without an outline, taken as crowd"].examples[0] == (
        "annotations[1] (id 101) of image '0.png'"
    )
    assert len(load(source, 0).labels) == len(load(source, 0).masks) == 6
    with pytest.raises(InputError, match="2 of 3 objects have no mask; give a set with outlines"):
        open_boxes(str(outlined(tmp_path / "b", [[TRIANGLE], ..., []])), masks=True)


@pytest.mark.parametrize(
    "outline, match",
    [
        ("x", "is no outline"),
        ([[1, 2, "3", 4, 5, 6]], "is no outline"),
        ([[1, 2, 3, 4, 5, 6, 7]], "is no outline"),
        ([[1, 2, 3, float("nan"), 5, 6]], "is no outline"),
        ([[1, 2, 3, 1e6, 5, 6]], "is no outline"),
        ({"size": [40, 60]}, "is no outline"),
        ({"size": [40, 60], "counts": [1, 2]}, "is no outline"),
        ({"size": [40, 60], "counts": [2400, -5, 5]}, "is no outline"),
        ({"size": [40, 60], "counts": "PPP"}, "is no outline"),
        (
            {"size": [60, 40], "counts": [2400]},
            "of height 60 and width 40, but .* has 40 and 60",
        ),
        ({"size": [20, 30], "counts": [600]}, "are of height 20 and width 30"),
        ({"size": [42, 60], "counts": [2520]}, "are of height 42 and width 60"),
        ({"size": [60000, 60000], "counts": [3600000000]}, "is no outline"),
    ],
)
def test_outlines_that_are_none(tmp_path, outline, match):
    path = outlined(tmp_path, [[TRIANGLE], [SQUARE], outline])
    with pytest.raises(InputError, match=rf"annotations\[2\] .*{match}"):
        open_boxes(str(path), masks=True)


def test_run_lengths_of_a_size_off_by_a_pixel_are_cut_or_padded(tmp_path):
    larger = np.zeros((41, 59), np.uint8)
    larger[10:41, 20:59] = 1
    path = outlined(tmp_path, [{"size": [41, 59], "counts": runs(larger)}, [TRIANGLE]])
    source = open_boxes(str(path), masks=True)
    assert annotated.around(pixels_of(source)[0] == 1) == [20, 10, 59, 40]
    (finding,) = source.report.fixed
    assert finding.what == "run lengths of a size off by 1 px, cut or padded" and finding.count == 1


def test_masks_that_reach_out_of_their_box_are_noticed(tmp_path):
    """And those that do by a hasty hand, crowds and objects without a mask are not."""
    boxes = [[10, 5, 30, 30], [12, 7, 28, 28], [13, 5, 27, 30], [0, 0, 5, 5], [0, 0, 5, 6]]
    path = outlined(tmp_path, [[TRIANGLE], [TRIANGLE], [TRIANGLE], [TRIANGLE], ...], boxes=boxes)
    annotated.edit(path, "annotations", 3, iscrowd=1)
    (finding,) = open_boxes(str(path), masks=True).report.noticed
    assert finding.what == "masks that reach out of their box"
    assert finding.examples == ("annotations[2] (id 102) of image '0.png'",)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["polygon", "runs"])
def test_masks_turn_with_their_images(tmp_path, orientation, kind):
    """Annotated as stored: what is red in the upright picture is the mask. A quarter turn beside it
    tells the frame of those whose size does not."""
    upright = annotated.canvas(40, 60)
    upright[6:15, 21:33] = RED
    entries, images = [], []
    for i, turn in enumerate((orientation, 6)):
        stored = annotated.save(tmp_path / f"{i}.png", upright, turn)
        red = (stored == RED).all(2)
        x1, y1, x2, y2 = annotated.around(red)
        outline = [[x1, y1, x2, y1, x2, y2, x1, y2]]
        if kind == "runs":
            outline = {"size": list(red.shape), "counts": runs(red)}
        height, width = red.shape
        images.append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
        entries.append(
            {"id": i, "image_id": i, "category_id": 3, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            | {"segmentation": outline}
        )
    path = annotated.coco(tmp_path / "json", [], images=images, annotations=entries)
    source = open_boxes(f"{path}::{tmp_path}", masks=True)
    for i in (0, 1):
        sample = load(source, i)
        assert ((sample.image == torch.tensor(RED)[:, None, None]).all(0) == sample.masks[0]).all()
        assert sample.boxes.tolist() == [[21, 6, 33, 15]] and not source.report.noticed


def test_masks_go_with_boxes_that_are_dropped_and_sets_that_are_divided(tmp_path):
    path = outlined(tmp_path, [[SQUARE], [TRIANGLE], [SQUARE]])
    annotated.edit(path, "annotations", 0, bbox=[5, 5, 0, 9])
    annotated.edit(path, "annotations", 1, image_id=30)
    source = open_boxes(str(path), masks=True)
    assert annotated.around(pixels_of(source)[0] == 1) == [30, 20, 50, 38]
    assert pixels_of(source, 2).shape == (1, 50, 50) and source.boxes(1).masks == []
    part = source.subset(np.array([1, 2]))
    assert part.boxes(0).masks == [] and part.boxes(1).masks == source.boxes(2).masks
    again = pickle.loads(pickle.dumps(source))
    assert again.boxes(2).masks == source.boxes(2).masks
    annotated.edit(path, "annotations", 2, segmentation=[TRIANGLE])
    other = open_boxes(str(path), masks=True).report.boxes_sha256
    assert other != source.report.boxes_sha256 != open_boxes(str(path)).report.boxes_sha256


def test_masks_stay_on_their_objects_through_views_and_batches(tmp_path):
    """One rectangle on white: what is red is where the mask is, whatever happens to it."""
    path = outlined(tmp_path, [[[20, 10, 44, 10, 44, 31, 20, 31]]], boxes=[[20, 10, 24, 21]])
    pixels = annotated.canvas(40, 60)
    pixels[10:31, 20:44] = RED
    annotated.save(tmp_path / "0.png", pixels)
    source = open_boxes(str(path), masks=True)
    augment = BoxAugmentConfig(
        resize="square", sizes=[96], test_size=96, expand=2, crop=True, colour=0, flip=0.5
    )
    make, seen = TrainBoxView(augment, 0), 0
    for view in range(60):
        image, target = make(source, 0, view, 0)
        masks = target["masks"]
        assert masks.dtype == torch.uint8 and masks.shape == (len(target["boxes"]), 96, 96)
        red = ((image[..., 0] > 150) & (image[..., 1] < 138)).numpy()  # at half of the colour
        if len(masks) and red.sum() > 30:
            seen += 1
            wrong = (red != masks[0].numpy()).sum()
            assert wrong <= 2 * 96 + 8 and type(masks) is torch.Tensor and masks.is_contiguous()
            box = np.array(annotated.around(masks[0].numpy() == 1))
            assert np.abs(box - target["boxes"][0].numpy()).max() <= 3
    assert seen > 30
    batch = BoxBatches([source], make)(np.array([[0, 0, 0, 0], [0, 1, 0, 0]], np.int64))
    assert [t["masks"].shape[1:] for t in batch.targets] == [(96, 96)] * 2
    assert batch.targets[1]["masks"].shape[0] == 0
    assert "masks" not in EvalBoxView()(source, 0)[1]


def test_mixed_images_bring_their_masks(tmp_path):
    path = outlined(tmp_path, [[TRIANGLE], [SQUARE]])
    annotated.edit(path, "annotations", 1, image_id=30)
    source = open_boxes(str(path), masks=True)
    make = TrainBoxView(BoxAugmentConfig(resize="square", sizes=[64], mixup=1.5, flip=0), 0)
    counts = {len(make(source, 0, view, 0)[1]["masks"]) for view in range(12)}
    assert counts == {1, 2}


def test_yolo_outlines_are_masks(tmp_path):
    lines = "0 .1 .1 .5 .1 .5 .6 .1 .6\n1 .5 .5 .2 .2\n0 .2 .2 .8 .2 .8 .8\n"
    root = annotated.yolo(tmp_path / "yolo", {"a": lines})
    source = open_boxes(f"{root}::train", masks=True)
    first, _, third = pixels_of(source)
    assert annotated.around(first == 1) == [6, 4, 30, 24] and first.sum() == 24 * 20
    within, beyond = inside([12, 8, 48, 8, 48, 32])
    assert third[within].all() and not third[beyond].any()
    assert source.boxes(0).crowd.tolist() == [False, True, False]
    with pytest.raises(InputError, match="VOC's xml has boxes and no masks; give COCO's json"):
        root = annotated.voc(tmp_path / "voc", {"a": [("cat", 0, 1, 1, 30, 20)]})
        open_boxes(str(root), masks=True)


@pytest.mark.parametrize(
    "entry, category",
    [
        # COCO itself: a crowd's run lengths are a list
        ({"segmentation": {"size": [40, 60], "counts": runs(ring())}, "iscrowd": 1}, {}),
        # labelme2coco and Roboflow: numbers of all kinds, ids from 0
        ({"segmentation": [[10, 5.5, 40.25, 5, 10, 35]], "area": 450, "iscrowd": 0}, {}),
        # CVAT: attributes, empty strings, skeletons of no points
        ({"segmentation": [SQUARE], "attributes": {"occluded": False}, "keypoints": [],
          "num_keypoints": 0}, {"supercategory": "", "keypoints": [], "skeleton": []}),
        # Label Studio: ignore, flat area
        ({"segmentation": [TRIANGLE], "ignore": 0, "area": 450.0}, {"color": "#fff"}),
    ],
    ids=["coco", "labelme", "cvat", "label studio"],
)  # fmt: skip
def test_files_as_tools_write_them(tmp_path, entry, category):
    path = outlined(tmp_path, [[TRIANGLE], [SQUARE]])
    content = json.loads(path.read_text())
    content["annotations"][0] |= entry
    content["categories"][0] |= category
    path.write_text(json.dumps(content))
    source = open_boxes(str(path), masks=True)
    assert source.report.boxes == 2 and pixels_of(source)[0].sum() > 300
    assert not [f for f in [*source.report.fixed, *source.report.noticed] if "twice" not in f.what]


def test_text_of_run_lengths_is_unpacked_as_a_loop_does():
    """Through faster-coco-eval's own, on masks of all sorts."""
    draw = np.random.default_rng(0)
    for _ in range(50):
        size = draw.integers(1, 50, 2)
        mask = (draw.random(size) < draw.random()).astype(np.uint8)
        text = encode(mask)["counts"].decode()
        outline = read_outline({"size": size.tolist(), "counts": text})
        same = read_outline({"size": size.tolist(), "counts": runs(mask)})
        assert outline == same
        assert (decode([outline])[0] == mask).all()
    rows = [[0, 0, 70, 0, 0, 50], [-90, -90, 90, -90, 90, 90, -90, 90], [5e4, 5, -5e4, 5, 3, 9e4]]
    for polygon in rows:  # over all edges, far beyond some
        rle = to_rle([np.array(polygon, float)], (40, 60), 1)
        assert rle is not None and decode([rle]).shape == (1, 40, 60)


def test_drawn_in_the_colours_of_their_classes():
    masks = np.zeros((2, 40, 60), np.uint8)
    masks[0, 5:20, 5:30], masks[1, 15:35, 25:50] = 1, 1
    pixels = np.full((40, 60, 3), 200, np.uint8)
    drawn = draw_instances(pixels, masks, [0, 1])
    first, second = (np.array(colour_of(label)) for label in (0, 1))
    assert (drawn[5, 10] == first).all() and (drawn[34, 40] == second).all()  # edges
    wanted = np.round((1 - OPACITY) * 200 + OPACITY * first)
    assert (drawn[10, 10] == wanted).all() and (drawn[0, 0] == 200).all()
    assert (draw_instances(pixels, [encode(mask) for mask in masks], [0, 1]) == drawn).all()
    assert draw_instances(pixels[::2, ::2], masks, [0, 1]).shape == (20, 30, 3)
    assert (draw_instances(pixels, [], []) == 200).all()


def test_masks_of_crowds_are_left_out_with_their_boxes(tmp_path):
    path = outlined(tmp_path, [[TRIANGLE], [SQUARE], ..., [TRIANGLE]])
    annotated.edit(path, "annotations", 0, iscrowd=1)
    sample = load(open_boxes(str(path), masks=True), 0)
    around = [annotated.around(mask.numpy() == 1) for mask in sample.masks]
    assert around == [[30, 20, 50, 38], [10, 5, 39, 34]] and len(sample.labels) == 2


def test_an_object_of_whose_mask_nothing_is_left_goes(tmp_path):
    """The other one's mask stays its own; a box stays as large as the crop makes it."""
    mask = np.zeros((2, 40, 60), np.uint8)
    mask[0, 30:40], mask[0, :, :4], mask[1, 5:10, 20:40] = 1, 1, 1  # an L, and a bar
    sample = geometry.make_sample(
        torch.zeros(3, 40, 60, dtype=torch.uint8),
        torch.tensor([[0.0, 0, 60, 40], [20, 5, 40, 10]]),
        torch.tensor([0, 1]),
        masks=torch.from_numpy(mask),
    )
    cut = geometry.crop(sample, 0, 10, (29, 45))
    assert cut.boxes.tolist() == [[0, 0, 45, 29], [10, 5, 30, 10]] and not cut.masks[0].any()
    left = geometry.drop_small(cut)
    assert left.labels.tolist() == [1] and left.masks.shape == (1, 29, 45)
    assert annotated.around(left.masks[0].numpy() == 1) == [10, 5, 30, 10]
    assert geometry.drop_small(sample).labels.tolist() == [0, 1]


def test_masks_are_resized_as_images_are():
    """The pixel whose middle is nearest: torchvision's `nearest` is half a pixel off."""
    mask = np.zeros((1, 8, 8), np.uint8)
    mask[:, 1::2, 1::2] = 1
    sample = geometry.make_sample(
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.tensor([[0.0, 0, 8, 8]]),
        torch.tensor([0]),
        masks=torch.from_numpy(mask),
    )
    assert geometry.resize(sample, (4, 4)).masks.tolist() == np.ones((1, 4, 4), int).tolist()
