"""Boxes as strangers have them: other conventions, outlines, ultralytics' files, Chinese tools."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from foreign_sets import box, coco, picture, xml, yolo

from downstream.dense.outlines import extent, read_outline
from downstream.detection.data.boxes import open_boxes
from ssld.common.errors import InputError


def refused(path: object, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        open_boxes(str(path))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "count, sizes", [(6, True), (6, False), (40, True), (40, False), (2, True)]
)
def test_corners_in_place_of_sizes(tmp_path, count, sizes):
    corners = [box(i, [40 + i % 7, 30, 100, 80]) for i in range(count)]
    refused(coco(tmp_path, corners, sizes=sizes), f"{count} of {count} boxes .* x1, y1, x2, y2")


def test_centres_in_place_of_corners_and_sizes_in_place_of_corners(tmp_path):
    centres = [box(i, [90 + i % 6, 60, 50, 40]) for i in range(12)]
    refused(coco(tmp_path / "coco", centres), "none if they are centre x, centre y")
    folder = tmp_path / "voc"
    for i in range(12):
        picture(folder / f"{i}.jpg")
        (folder / f"{i}.xml").write_text(xml(box=(60 + i, 40, 30, 20)))
    refused(folder, "if their numbers are x1, y1, x2, y2, and none if they are x, y, width, height")


def test_yolo_corners(tmp_path):
    root = yolo(tmp_path, "0 .2 .2 .8 .9\n")
    refused(f"{root}::train", "6 of 6 boxes .* centre x, .* none if they are x1, y1, x2, y2")


def test_boxes_of_other_pictures(tmp_path):
    far = [box(i, [5, 5, 180, 130]) for i in range(6)]
    refused(coco(tmp_path, far, sizes=False), "6 of 6 boxes reach .* more than 5% of its side")


def test_honest_boxes_at_the_edge_are_kept(tmp_path):
    """Objects that fill the picture, a hasty hand's px over the edge, a few that are far over."""
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 50, (40, 2))
    honest = [[x, y, *rng.uniform(8, 40, 2)] for x, y in low.tolist()]
    cases = {
        "inside": honest,
        "a few over": [*honest, [100, 70, 40, 40], [90, 5, 60, 10]],
        "filling": [[0, 0, 120, 90]] * 3,
        "hasty": [[3, 2, 119, 90]] * 3,  # over by 2 px
        "large from the corner": [[1, 1, 60 + i, 50] for i in range(12)],
    }
    for name, boxes in cases.items():
        rows = [box(i, values) for i, values in enumerate(boxes)]
        source = open_boxes(coco(tmp_path / name, rows))
        assert source.report.boxes == len(boxes), name


def test_the_box_of_an_outline(tmp_path):
    polygon = [[10, 10, 50, 10, 50, 40, 10, 40]]
    runs = np.zeros((90, 120), np.uint8)
    runs[20:30, 60:80] = 1
    changes = [len(list(group)) for _, group in itertools.groupby(runs.T.ravel().tolist())]
    crowd = {"size": [90, 120], "counts": changes}
    rows = [
        {"id": 0, "image_id": 0, "category_id": 1, "segmentation": polygon},
        {
            "id": 1,
            "image_id": 1,
            "category_id": 1,
            "segmentation": [*polygon, [70, 5, 90, 5, 80, 9]],
        },
        {"id": 2, "image_id": 2, "category_id": 1, "segmentation": crowd, "bbox": []},
        box(3, [1, 2, 3, 4], segmentation=polygon),
        box(4, None, segmentation=polygon[0]),
    ]
    source = open_boxes(coco(tmp_path, rows))
    found = [source.boxes(i).xyxy.tolist() for i in range(5)]
    assert found == [
        [[10, 10, 50, 40]], [[10, 5, 90, 40]], [[60, 20, 80, 30]], [[1, 2, 4, 6]],
        [[10, 10, 50, 40]],
    ]  # fmt: skip
    assert "boxes without bbox, taken around their outlines: 4" in source.report.remarks
    rows[1]["segmentation"] = [[1, "x"]]
    refused(
        coco(tmp_path, rows), r"a.json: annotations\[1\] .* no bbox, and its segmentation is no"
    )


def test_run_lengths_are_those_of_coco():
    from faster_coco_eval import mask

    rng = np.random.default_rng(1)
    for i in range(30):
        pixels = (rng.random(rng.integers(1, 30, 2)) < (0.02, 0.5)[i % 2]).astype(np.uint8)
        packed = mask.encode(np.asfortranarray(pixels))
        counts = packed["counts"]
        counts = counts if isinstance(counts, str) else counts.decode()
        found = extent({"size": list(pixels.shape), "counts": counts})
        if not pixels.any():
            assert found is None
            continue
        y, x = np.nonzero(pixels)
        assert found == [x.min(), y.min(), x.max() + 1, y.max() + 1]


@pytest.mark.parametrize(
    "outline",
    ["x", {}, [[1, "a"]], [[1, 2]], [[[]]], {"size": [9, 9], "counts": "\x00~~"}, [[1, 2], 3, None],
     {"size": [9, 9], "counts": [[1]]}, {"size": ["9", 9], "counts": [1]}, True,
     {"size": [9, 9], "counts": [10**30]}, {"size": [9, 9], "counts": [-5, 86]}],
)  # fmt: skip
def test_what_is_no_outline(outline):
    assert extent(read_outline(outline)) is None


ULTRALYTICS = "path: .\ntrain: images/train\nval: images/val\nnames: [yes, no]\n"


def test_a_data_yaml_is_a_source(tmp_path):
    root = yolo(tmp_path, "0 .5 .5 .2 .3\n1 .2 .2 .1 .1\n", ULTRALYTICS)
    for split in ("train", "val"):
        source = open_boxes(f"{root}/data.yaml::{split}")
        assert len(source) == 6 and source.class_names == ["yes", "no"]
        assert split in source.location(0)
    assert open_boxes(f"{root}::train").class_names == ["yes", "no"]
    refused(f"{root}/data.yaml", r"which split\? give .*data.yaml::train or .*data.yaml::val")
    refused(f"{root}/data.yaml::test", "has no split 'test'; give .*::train or .*::val")
    refused(root, r"which split\? give .*::train or .*::val")


@pytest.mark.parametrize(
    "names, wanted",
    [
        ("[yes, no]", ["yes", "no"]),
        ("[on, off]", ["on", "off"]),
        ("[1.0, null]", ["1.0", "null"]),
        ("[007, 1e3]", ["007", "1e3"]),
        ("{0: yes, 1: ~}", ["yes", "~"]),
        ("{1: b, 0: a}", ["a", "b"]),
        ("[2024-01-01, $5]", ["2024-01-01", "$5"]),
        ("[鱼, 'سمك']", ["鱼", "سمك"]),
    ],
)
def test_names_are_text(tmp_path, names, wanted):
    root = yolo(tmp_path, "1 .5 .5 .2 .3\n", f"train: images/train\nnc: 2\nnames: {names}\n")
    assert open_boxes(f"{root}/data.yaml::train").class_names == wanted


@pytest.mark.parametrize(
    "yaml, match",
    [
        ("names: [a, [b]]", r"data.yaml: names\[1\] is \['b'\]; give a name"),
        ("names: [a, {b: c}]", r"names\[1\] is"),
        ("names: a", "has no 'names'"),
        ("names: [a, a]", r"names\[1\] is 'a', as already"),
        ("names: {a: b}", r"names has the keys \['a'\]"),
        ("names: {0: a, 00: b}", "names has the keys"),
        ("names: [a]\nnc: [1]", "nc is"),
        ("names: [a]\ntrain: {a: b}", "train.* give a folder or a list"),
        ("names: [a]\ntrain: nowhere", "train is 'nowhere', and there is no such"),
        ("names: [a]\nkpt_shape: 5", "kpt_shape is '5'"),
        ("- a\n- train", "is no mapping"),
        ("names: [a", "cannot be read as YAML"),
        ("a: " + "[" * 3000, "cannot be read as YAML"),
        ("? [a, b]\n: 1", "cannot be read as YAML"),
    ],
)
def test_a_data_yaml_that_is_none(tmp_path, yaml, match):
    root = yolo(tmp_path, "0 .5 .5 .2 .3\n", "train: images/train\n")
    (root / "data.yaml").write_text(yaml if "train" in yaml else f"{yaml}\ntrain: images/train\n")
    refused(f"{root}/data.yaml::train", match)


def test_a_data_yaml_with_the_path_of_another_machine_and_of_roboflow(tmp_path):
    root = yolo(tmp_path / "a", "0 .5 .5 .2 .3\n", "path: /home/x/sets\ntrain: images/train\n")
    (root / "data.yaml").write_text("path: /home/x\ntrain: [images/train]\nnames: [fish]\n")
    assert len(open_boxes(f"{root}/data.yaml::train")) == 6
    other = tmp_path / "b"
    for name in ("images", "labels"):
        (other / "train").mkdir(parents=True, exist_ok=True)
        (root / name / "train").rename(other / "train" / name)
    (other / "data.yaml").write_text("train: ../train/images\nnames: [fish]\n")
    assert open_boxes(f"{other}/data.yaml::train").report.boxes == 6
    assert open_boxes(f"{other}::train").report.boxes == 6


def test_lists_are_read_by_split(tmp_path):
    """All images in one folder, train.txt and val.txt beside it."""
    for i in range(6):
        picture(tmp_path / f"images/im{i}.jpg")
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / f"labels/im{i}.txt").write_text("0 .5 .5 .2 .3\n")
    (tmp_path / "train.txt").write_text("".join(f"./images/im{i}.jpg\n" for i in range(4)))
    (tmp_path / "val.txt").write_text(f"{tmp_path}/images/im4.jpg\nimages\\im5.jpg\n")
    (tmp_path / "data.yaml").write_text("train: train.txt\nval: val.txt\nnames: [fish]\n")
    for path in (tmp_path, tmp_path / "data.yaml"):
        train, val = (open_boxes(f"{path}::{split}") for split in ("train", "val"))
        assert [train.sample_id(i) for i in range(len(train))] == [f"im{i}.jpg" for i in range(4)]
        assert len(val) == 2 and val.report.boxes == 2
        refused(path, r"which split\? give .*::train or .*::val")
    (tmp_path / "val.txt").write_text("images/im4.jpg\nimages/im9.jpg\n")
    refused(f"{tmp_path}::val", "val.txt: line 2: 'images/im9.jpg' is no file")
    (tmp_path / "val.txt").write_text("images/im4.jpg\n./images/im4.jpg\n")
    refused(f"{tmp_path}::val", "val.txt: line 2: .* is on line 1, too")


def test_darknet_labels_lie_beside_the_pictures(tmp_path):
    for i in range(3):
        picture(tmp_path / f"obj_train_data/im{i}.jpg")
        (tmp_path / f"obj_train_data/im{i}.txt").write_text("0 .5 .5 .2 .3\n")
    (tmp_path / "obj.names").write_text("fish\n")
    (tmp_path / "train.txt").write_text("data/obj_train_data/im0.jpg\nobj_train_data/im1.jpg\n")
    source = open_boxes(f"{tmp_path}::train")
    assert source.report.boxes == 2 and source.class_names == ["fish"]
    refused(tmp_path, r"which split\? give .*::train")


def test_subfolders_twins_and_hidden_files(tmp_path):
    root = yolo(tmp_path, "0 .5 .5 .2 .3\n", splits=("train",))
    picture(root / "images/train/cam1/im0.jpg")
    (root / "labels/train/cam1").mkdir()
    (root / "labels/train/cam1/im0.txt").write_text("0 .5 .5 .2 .3\n0 .2 .2 .1 .1\n")
    (root / "images/train/._im0.jpg").write_bytes(b"\0\5\26\7")
    (root / "labels/train/._im0.txt").write_bytes(b"\0\5\26\7")
    source = open_boxes(f"{root}::train")
    names = [source.sample_id(i) for i in range(len(source))]
    assert names == ["cam1/im0.jpg", *(f"im{i}.jpg" for i in range(6))]
    assert len(source.boxes(0).labels) == 2 and source.report.boxes == 8
    picture(root / "images/train/im0.png")
    refused(f"{root}::train", "im0.txt: is the label file of .*im0.jpg and of .*im0.png; rename")
    (root / "labels/train/im0.txt").unlink()  # two negatives
    assert len(open_boxes(f"{root}::train")) == 8


def test_yolo_outlines_are_their_boxes(tmp_path):
    lines = "0 .1 .1 .5 .1 .5 .6 .1 .6\n0 .5 .5 .2 .2\n0 0 0 .5 0 .25 .25\n"
    source = open_boxes(f"{yolo(tmp_path, lines)}::train")
    wanted = [[12, 9, 60, 54], [48, 36, 72, 54], [0, 0, 60, 22.5]]
    assert np.allclose(source.boxes(0).xyxy, wanted, atol=1e-4)
    assert "boxes taken around outlines: 12" in source.report.remarks


def test_yolo_keypoints_are_not_outlines(tmp_path):
    lines = "0 .5 .5 .2 .2 .1 .1 2 .9 .9 1\n"
    root = yolo(tmp_path, lines, "names: [fish]\nkpt_shape: [2, 3]\n")
    source = open_boxes(f"{root}::train")
    assert np.allclose(source.boxes(0).xyxy, [[48, 36, 72, 54]], atol=1e-4)
    assert np.allclose(source.boxes(0).keypoints, [[[12, 9, 2], [108, 81, 1]]], atol=1e-4)
