"""Annotations whose values are of other types than their format's: one sentence that names file,
key and index, before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from foreign_sets import box, coco, yolo

from downstream.detection.data.boxes import open_boxes
from ssld.common.errors import InputError


def refused(path: object, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        open_boxes(str(path))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


GOOD = [box(0, [1, 2, 20, 30]), box(1, [1, 2, 20, 30])]


@pytest.mark.parametrize(
    "change, match",
    [
        ({"bbox": ["1", "2", "20", "30"]}, r"annotations\[1\] .* bbox is \['1', '2'"),
        ({"bbox": [True, 2, 3, 4]}, r"annotations\[1\] .* bbox is \[True"),
        ({"bbox": [[1, 2], [3, 4]]}, r"annotations\[1\] .* bbox is"),
        ({"bbox": {"x": 1}}, r"annotations\[1\] .* bbox is"),
        ({"bbox": None}, r"annotations\[1\] .* bbox is None"),
        ({"bbox": [10**400, 1, 1, 1]}, r"annotations\[1\] .* bbox\[0\] \(x\) is"),
        ({"bbox": [1e300, 1, 1e300, 1]}, r"annotations\[1\] .* bbox\[0\] \(x\) is"),
        ({"bbox": [1] * 100_000}, r"annotations\[1\] .* bbox is"),
        ({"image_id": True}, r"annotations\[1\] .* image_id True"),
        ({"image_id": 1.0}, r"annotations\[1\] .* image_id 1.0"),
        ({"image_id": "1.0"}, r"annotations\[1\] .* image_id '1.0'"),
        ({"image_id": [1]}, r"annotations\[1\] .* image_id \[1\]"),
        ({"image_id": None}, r"annotations\[1\] .* image_id None"),
        ({"category_id": {"a": 1}}, r"annotations\[1\] .* category_id"),
        ({"category_id": 10**30}, r"annotations\[1\] .* category_id 10+"),
        ({"iscrowd": "0"}, r"annotations\[1\] .* iscrowd is '0'"),
        ({"iscrowd": [1]}, r"annotations\[1\] .* iscrowd is"),
        ({"area": float("inf")}, None),
        ({"area": "12"}, None),
        ({"area": None}, None),
        ({"keypoints": 5}, None),  # no category has any
    ],
)
def test_annotations_of_other_types(tmp_path, change, match):
    path = coco(tmp_path, [GOOD[0], {**GOOD[1], **change}])
    if match is None:
        assert np.isfinite(open_boxes(path).boxes(1).areas).all()
    else:
        refused(path, f"a.json: .*{match}")


@pytest.mark.parametrize(
    "part, change, match",
    [
        ("images", {"id": 1.0}, r"images\[1\].id is 1.0; give an integer"),
        ("images", {"id": 2**63}, r"images\[1\].id is 9223372036854775808"),
        ("images", {"id": None}, r"images\[1\].id is None"),
        ("images", {"file_name": None}, r"images\[1\].file_name is None"),
        ("images", {"file_name": 5}, r"images\[1\].file_name is 5"),
        ("images", {"file_name": "a\0b.jpg"}, r"images\[1\].file_name is .*which no file has"),
        ("images", {"file_name": "\ud800.jpg"}, r"images\[1\].file_name is .*which no file has"),
        ("images", {"width": float("nan")}, None),
        ("images", {"width": float("inf"), "height": 1e300}, None),
        ("images", {"width": "120"}, None),
        ("images", {"width": True, "height": True}, None),
        ("categories", {"name": None}, "the name of category 1 is None; give a name"),
        ("categories", {"name": ["a"]}, "the name of category 1 is"),
        ("categories", {"name": "\ud800"}, "the name of category 1 is .*no text"),
        ("categories", {"name": 5}, None),
        ("categories", {"name": ""}, None),
        ("categories", {"keypoints": 5}, "keypoints of category 1 is 5; give the list"),
        ("categories", {"keypoints": "abc"}, "keypoints of category 1 is 'abc'; give the list"),
        ("categories", {"keypoints": [None]}, "keypoints of category 1: entry 0 is None"),
    ],
)
def test_images_and_categories_of_other_types(tmp_path, part, change, match):
    path = Path(coco(tmp_path, GOOD))
    content = json.loads(path.read_text())
    content[part][-1 if part == "categories" else 1].update(change)
    path.write_text(json.dumps(content))
    if match is None:
        assert open_boxes(str(path)).report.boxes == 2
    else:
        refused(path, f"a.json: {match}")


@pytest.mark.parametrize(
    "value, match",
    [
        (5, "keypoints has 5; give x, y, visibility"),
        ("123456", "keypoints has '123456'"),
        ({"a": 1}, "keypoints has"),
        ([1, 2, True, 0, 0, 0], r"keypoints\[2\] is True"),
        ([1, "2", 2, 0, 0, 0], r"keypoints\[1\] is '2'"),
        ([1, 10**400, 2, 0, 0, 0], r"keypoints\[1\] is 1"),
        ([[1, 2, 2], [0, 0, 0]], "keypoints has 2 entries"),
    ],
)
def test_keypoints_of_other_types(tmp_path, value, match):
    categories = [{"id": 1, "name": "fish", "keypoints": ["head", "tail"]}]
    rows = [GOOD[0], {**GOOD[1], "keypoints": value}]
    refused(coco(tmp_path, rows, categories=categories), rf"annotations\[1\] .*{match}")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 5000,
        "",
        "null",
        "1" * 5000,
        '{"images": [[]]}',
        "\ufeff{",
        "{'a': 1}",
    ],
    ids=["deep list", "deep object", "empty", "null", "number", "other", "mark", "python"],
)
def test_json_that_is_no_set(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    refused(tmp_path / "a.json", "a.json: (cannot be read as JSON|has no list of objects)")


def test_json_with_a_byte_order_mark_or_in_gbk(tmp_path):
    path = Path(coco(tmp_path, GOOD, categories=[{"id": 1, "name": "鱼"}]))
    text = json.dumps(json.loads(path.read_text()), ensure_ascii=False)
    for encoding in ("utf-8-sig", "gbk", "utf-16"):
        path.write_bytes(text.encode(encoding))
        assert open_boxes(str(path)).class_names == ["鱼"]


def test_annotations_with_one_id_are_kept_and_counted(tmp_path):
    source = open_boxes(coco(tmp_path, [GOOD[0], {**GOOD[1], "id": 0}]))
    assert source.report.boxes == 2
    assert "annotations whose id occurred before, kept: 1" in source.report.remarks


@pytest.mark.parametrize(
    "line",
    [
        "0 ٠.5 x .2 .2",
        "\0 .5 .5 .2 .2",
        "0x0 .5 .5 .2 .2",
        "nan .5 .5 .2 .2",
        "1e400 .5 .5 .2 .2",
        "0 1e400 .5 .2 .2",
        "[0] .5 .5 .2 .2",
    ],
)
def test_yolo_lines_of_other_types(tmp_path, line):
    root = yolo(tmp_path, "0 .5 .5 .2 .2\n")
    (root / "labels/train/im3.txt").write_text(f"0 .5 .5 .2 .2\n{line}\n")
    refused(f"{root}::train", "im3.txt: line 2")
