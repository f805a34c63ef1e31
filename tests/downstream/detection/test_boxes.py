"""What comes out of annotation files: the right boxes, classes and ids, and what was mended."""

from __future__ import annotations

import contextlib
import io
import json
import pickle

import annotated
import numpy as np
import pytest
from faster_coco_eval import COCO, COCOeval_faster

from downstream.detection.data.boxes import open_boxes
from ssld.common.errors import InputError

INSIDE = [
    (30, 90, [1, 2, 20, 30]),
    (10, 3, [5.5, 6.25, 10, 20]),
    (10, 7, [0, 0, 60, 40]),
    (10, 3, [40, 20, 20, 20]),
]


def test_coco_boxes_follow_their_ids(tmp_path):
    """Categories out of order and with gaps, annotations not by image, an image without any."""
    path = annotated.coco(tmp_path, INSIDE, categories={90: "bird", 3: "cat", 7: "dog"})
    source = open_boxes(str(path))
    assert source.class_names == ["cat", "dog", "bird"] and source.category_ids == [3, 7, 90]
    assert source.image_ids == [10, 20, 30] and len(source) == 3
    first = source.boxes(0)
    assert first.xyxy.tolist() == [[5.5, 6.25, 15.5, 26.25], [0, 0, 60, 40], [40, 20, 60, 40]]
    assert first.labels.tolist() == [0, 1, 0] and first.areas.tolist() == [200, 2400, 400]
    assert first.xyxy.dtype == first.areas.dtype == np.float32 and first.labels.dtype == np.int64
    assert source.boxes(1).xyxy.shape == (0, 4) and len(source.boxes(1).labels) == 0
    assert source.boxes(2).labels.tolist() == [2]
    assert [source.image_size(i) for i in range(3)] == [(40, 60), (60, 40), (50, 50)]
    assert source.sample_id(1) == "1.png"
    assert source.report.without_boxes == 1
    assert [(c.name, c.category_id, c.boxes, c.images) for c in source.report.classes] == [
        ("cat", 3, 2, 1),
        ("dog", 7, 1, 1),
        ("bird", 90, 1, 1),
    ]


def test_the_boxes_given_back_as_predictions_have_an_ap_of_1(tmp_path):
    """The id map against the evaluation that will judge: a wrong one gives about 0."""
    path = annotated.edit(annotated.coco(tmp_path, INSIDE), "annotations", 0, area=600)
    for row in range(1, 4):
        annotated.edit(path, "annotations", row, area=500)
    source = open_boxes(str(path))
    predictions = []
    for i in range(len(source)):
        found = source.boxes(i)
        for (x1, y1, x2, y2), label in zip(found.xyxy.tolist(), found.labels, strict=True):
            predictions.append(
                {
                    "image_id": source.image_ids[i],
                    "category_id": source.category_ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": 0.9,
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        judge = COCOeval_faster(truth, truth.loadRes(predictions), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    assert judge.stats[0] == pytest.approx(1)


def test_single_slips_are_mended_or_dropped_and_counted(tmp_path):
    boxes = [
        *INSIDE,
        *[(30, 7, [10, 10, 10 + i, 10]) for i in range(5)],
        (10, 3, [50, 30, 20, 30]),  # over the lower right corner
        (20, 3, [-0.25, -5, 10, 15]),  # over the upper left one
        (20, 3, [30, 50, 10.5, 10]),  # by half a pixel
        (10, 3, [10, 10, 0, 5]),
        (10, 3, [10, 10, 5, -4]),
        (10, 3, [60, 10, 5, 4]),  # begins where the image ends
        (10, 3, [-20, 10, 5, 4]),
        (30, 90, [1, 2, 20, 30]),  # there twice
    ]
    path = annotated.edit(annotated.coco(tmp_path, boxes), "annotations", 9, area=590)
    source = open_boxes(str(path))
    assert source.boxes(0).xyxy[-1].tolist() == [50, 30, 60, 40]
    assert source.boxes(0).areas[-1] == 100  # the stated one was of the whole box
    assert source.boxes(1).xyxy.tolist() == [[0, 0, 9.75, 10], [30, 50, 40, 60]]
    found = {finding.what: finding for finding in [*source.report.fixed, *source.report.dropped]}
    counts = {what: finding.count for what, finding in found.items()}
    assert counts == {
        "boxes over the edge by more than 1 px, cut": 2,
        "boxes over the edge by rounding (at most 1 px), cut": 1,
        "boxes without a width and height above 0": 2,
        "boxes with no area inside the image": 2,
    }
    places = found["boxes without a width and height above 0"].examples
    assert places == (
        "annotations[12] (id 112) of image '0.png'",
        "annotations[13] (id 113) of image '0.png'",
    )
    assert [finding.count for finding in source.report.noticed] == [1]
    assert (
        source.report.boxes == len(boxes) - 4 == sum(len(source.boxes(i).labels) for i in (0, 1, 2))
    )


def test_an_image_that_loses_all_its_boxes_is_named(tmp_path):
    path = annotated.coco(tmp_path, [*INSIDE, (20, 3, [5, 5, 0, 0])])
    noticed = open_boxes(str(path)).report.noticed
    assert [(f.what, f.examples) for f in noticed] == [
        ("images that lost all their boxes", ("'1.png'",))
    ]


def test_a_box_too_thin_for_float32_is_dropped(tmp_path):
    path = annotated.coco(tmp_path, [*INSIDE, (10, 3, [59.0, 5, 1e-7, 5])])
    source = open_boxes(str(path))
    assert source.report.boxes == 4 and source.report.dropped[0].count == 1


def test_crowd_boxes_are_marked_and_not_counted(tmp_path):
    path = annotated.edit(annotated.coco(tmp_path, INSIDE), "annotations", 1, iscrowd=1)
    source = open_boxes(str(path))
    assert source.boxes(0).crowd.tolist() == [True, False, False]
    assert source.report.crowd == 1 and source.report.classes[0].boxes == 1
    for row in (0, 2, 3):
        annotated.edit(path, "annotations", row, iscrowd=1)
    with pytest.raises(InputError, match="has a box to learn from .all are crowd"):
        open_boxes(str(path))


def test_classes_of_another_set_are_matched_by_name(tmp_path):
    path = str(annotated.coco(tmp_path, INSIDE))
    source = open_boxes(path, ["dog", "horse", "bird", "cat"])
    assert source.class_names == ["dog", "horse", "bird", "cat"]
    assert source.category_ids == [7, -2, 90, 3]
    assert source.boxes(0).labels.tolist() == [3, 0, 3] and source.boxes(2).labels.tolist() == [2]
    with pytest.raises(InputError, match=r"annotations\[1\] .* of image '0.png' is of class 'cat'"):
        open_boxes(path, ["dog", "cats", "bird"])


def test_a_class_without_boxes_need_not_be_known(tmp_path):
    path = annotated.coco(tmp_path, INSIDE, categories={0: "all", 3: "cat", 7: "dog", 90: "bird"})
    assert open_boxes(str(path), ["cat", "dog", "bird"]).boxes(2).labels.tolist() == [2]


def test_keypoints_are_continuous_and_know_left_from_right(tmp_path):
    names = ["nose", "left_eye", "right_eye", "tail"]
    path = annotated.coco(tmp_path, INSIDE)
    annotated.edit(path, "categories", 0, keypoints=names)
    annotated.edit(path, "annotations", 1, keypoints=[6, 7, 2, 8, 9, 1, 0, 0, 0, 10, 11, 2])
    source = open_boxes(str(path))
    assert source.keypoints.flip_pairs == ((1, 2),)
    points = source.boxes(0).keypoints
    assert points is not None and points.dtype == np.float32
    assert points[0].tolist() == [[6.5, 7.5, 2], [8.5, 9.5, 1], [0, 0, 0], [10.5, 11.5, 2]]
    assert (points[1:] == 0).all()  # of a category without keypoints


@pytest.mark.parametrize("layout", ["beside", "images", "stem", "official", "elsewhere"])
def test_coco_images_are_found(tmp_path, layout):
    made = annotated.coco(tmp_path / "made", INSIDE)
    images = {"beside": ".", "images": "images", "stem": "boxes", "official": "../val2017"}
    folder = tmp_path / "set" / ("annotations" if layout == "official" else "")
    folder.mkdir(parents=True)
    path = folder / ("instances_val2017.json" if layout == "official" else "boxes.json")
    path.write_text(made.read_text())
    target = folder / images.get(layout, "../elsewhere")
    target.mkdir(parents=True, exist_ok=True)
    for image in made.parent.glob("*.png"):
        image.rename(target / image.name)
    given = f"{path}::{target}" if layout == "elsewhere" else str(path)
    source = open_boxes(given)
    assert source.read(2)[:4] == b"\x89PNG" and source.sample_id(2) == "2.png"


def test_voc(tmp_path):
    root = annotated.voc(
        tmp_path / "VOC",
        {
            "a": [("dog", 0, 1, 1, 60, 40), ("cat", 1, 11, 6, 20.0, 15)],
            "b": [],
            "c": [("cat", 0, 0, 0, 10, 10)],
            "unlisted": [("cow", 0, 1, 1, 10, 10)],
        },
    )
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("c\na\nb\n")
    source = open_boxes(f"{root}::train")
    assert source.class_names == ["cat", "dog"] and source.image_ids == [1, 2, 3]
    assert [source.sample_id(i) for i in range(3)] == ["c.png", "a.png", "b.png"]
    assert source.boxes(1).xyxy.tolist() == [[0, 0, 60, 40], [10, 5, 20, 15]]
    assert source.boxes(1).crowd.tolist() == [False, True]
    assert source.boxes(0).xyxy.tolist() == [[0, 0, 10, 10]]
    assert source.report.without_boxes == 1
    whole = open_boxes(str(root))
    assert len(whole) == 4 and whole.class_names == ["cat", "cow", "dog"]
    (root / "classes.txt").write_text("dog\ncow\ncat\n")
    assert open_boxes(f"{root}::train").class_names == ["dog", "cow", "cat"]
    annotated.save(root / "JPEGImages/new.png", annotated.canvas(5, 5))
    assert "images without an xml file, left out: 1" in open_boxes(str(root)).report.remarks


def test_yolo(tmp_path):
    lines = {"a": "1 0.5 0.5 1 1\n0 0.25 0.25 0.5 0.5\n\n", "b": "", "c": None}
    root = annotated.yolo(tmp_path, lines)
    source = open_boxes(f"{root}::train")
    assert source.class_names == ["cat", "dog"]
    assert source.boxes(0).xyxy.tolist() == [[0, 0, 60, 40], [0, 0, 30, 20]]
    assert source.boxes(0).labels.tolist() == [1, 0]
    assert source.boxes(0).areas.tolist() == [2400, 600]
    assert source.report.without_boxes == 2
    assert any(line.endswith("taken as without boxes: 1 of 3") for line in source.report.remarks)
    (root / "data.yaml").write_text("names: {0: dog, 1: cat}\n")
    assert open_boxes(f"{root}::train").class_names == ["dog", "cat"]
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("one\ntwo\n")
    assert open_boxes(f"{root}::train").class_names == ["one", "two"]
    (root / "train").mkdir()
    for name in ("images", "labels"):
        (root / name / "train").rename(root / "train" / name)
        (root / name).rmdir()
    assert len(open_boxes(f"{root}::train")) == 3


def test_all_formats_agree(tmp_path):
    """The same two boxes of one picture, written three ways."""
    coco = annotated.coco(
        tmp_path / "coco", [(10, 1, [6, 8, 12, 16]), (10, 2, [30, 10, 15, 20])],
        sizes=[(40, 60)], categories={1: "cat", 2: "dog"},
    )  # fmt: skip
    voc = annotated.voc(
        tmp_path / "voc", {"a": [("cat", 0, 7, 9, 18, 24), ("dog", 0, 31, 11, 45, 30)]}
    )
    yolo = annotated.yolo(tmp_path / "yolo", {"a": "0 0.2 0.4 0.2 0.4\n1 0.625 0.5 0.25 0.5"})
    found = [open_boxes(path).boxes(0) for path in (str(coco), str(voc), f"{yolo}::train")]
    for other in found[1:]:
        assert np.allclose(other.xyxy, found[0].xyxy, atol=1e-5)
        assert other.labels.tolist() == found[0].labels.tolist() == [0, 1]
        assert np.allclose(other.areas, found[0].areas, rtol=1e-6)


def test_hashes_tell_files_and_boxes_apart(tmp_path):
    path = annotated.coco(tmp_path, INSIDE)
    before = open_boxes(str(path)).report
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2))
    laid_out = open_boxes(str(path)).report
    assert laid_out.files_sha256 != before.files_sha256
    assert laid_out.boxes_sha256 == before.boxes_sha256
    annotated.edit(path, "annotations", 1, bbox=[5.5, 6.25, 10, 21])
    assert open_boxes(str(path)).report.boxes_sha256 != before.boxes_sha256


def test_a_source_pickles_small(tmp_path):
    boxes = [(10 * (1 + j % 3), 3, [j % 7, 1, 10, 10]) for j in range(3000)]
    source = open_boxes(str(annotated.coco(tmp_path, boxes)))
    data = pickle.dumps(source)
    assert len(data) < 3000 * 40
    again = pickle.loads(data)
    assert np.array_equal(again.boxes(1).xyxy, source.boxes(1).xyxy)
