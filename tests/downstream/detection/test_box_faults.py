"""Bad annotations: one sentence that names file, image and field, before the first step."""

from __future__ import annotations

import json
import shutil

import annotated
import pytest

from downstream.detection.data.boxes import open_boxes
from ssld.common.errors import InputError

BOXES = [(10, 3, [1, 2, 20, 30]), (20, 7, [5, 6, 10, 20])]
SECOND = r"boxes.json: annotations\[1\] \(id 101\)"


def refused(path: object, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        open_boxes(str(path))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "values, match",
    [
        ({"category_id": 4}, SECOND + " has category_id 4, but no category .* ids are 3, 7, 90"),
        ({"category_id": "7x"}, "has category_id '7x'"),
        ({"image_id": 21}, SECOND + " has image_id 21, but no image .* ids are 10, 20, 30"),
        ({"bbox": [1, float("nan"), 2, 3]}, SECOND + r" of image '1.png': bbox\[1\] \(y\) is nan"),
        ({"bbox": [1, 2, float("inf"), 3]}, r"of image '1.png': bbox\[2\] \(width\) is inf"),
        ({"bbox": [1, 2, 3]}, r"of image '1.png': bbox is \[1, 2, 3\]"),
        ({"bbox": [1, 2, None, 3]}, "of image '1.png': bbox is"),
        ({"bbox": ...}, r"annotations\[1\] has no 'bbox'"),
        ({"category_id": ...}, r"annotations\[1\] has no field 'category_id'"),
    ],
)
def test_coco_annotations(tmp_path, values, match):
    refused(annotated.edit(annotated.coco(tmp_path, BOXES), "annotations", 1, **values), match)


@pytest.mark.parametrize(
    "part, values, match",
    [
        ("images", {"id": 10}, r"images\[1\].id is 10, as already in entry 0"),
        ("images", {"id": "b"}, r"images\[1\].id is 'b'; give an integer"),
        ("images", {"file_name": "0.png"}, r"images\[1\].file_name is '0.png', as already"),
        ("images", {"file_name": "/x/0.png"}, r"images\[1\].file_name '/x/0.png' is no file in"),
        ("images", {"file_name": "9.png"}, r"images\[1\].file_name '9.png' is no file in"),
        ("images", {"width": 80}, "image '1.png' are 80 and 60, but its file has 40 and 60 px"),
        ("images", {"width": 60, "height": 40}, "image '1.png' are 60 and 40, but its file has 40"),
        ("categories", {"id": 3}, r"categories\[1\].id is 3, as already"),
        ("categories", {"name": "cat"}, "the name of category 7 is 'cat', as already"),
        ("categories", {"name": ...}, r"categories\[1\] has no field 'name'"),
    ],
)
def test_coco_images_and_categories(tmp_path, part, values, match):
    refused(annotated.edit(annotated.coco(tmp_path, BOXES), part, 1, **values), match)


def test_files_that_are_not_coco(tmp_path):
    path = annotated.coco(tmp_path, BOXES)
    for content, match in (
        ("{", "cannot be read as JSON"),
        ("[]", "has no list of objects 'images'"),
        (json.dumps({"images": [], "annotations": []}), "has no list of objects 'categories'"),
        (json.dumps({"images": [], "annotations": [], "categories": []}), "'images' is empty"),
        (json.dumps({"images": [1], "annotations": [], "categories": []}), "objects 'images'"),
    ):
        path.write_text(content)
        refused(path, match)
    refused(tmp_path / "none.json", "no such file or folder")
    refused(tmp_path, "neither Annotations/ .* given as a file: .*boxes.json")
    refused("s3://bucket/boxes.json", "copy them there")


def test_missing_images_are_counted_and_the_first_is_named(tmp_path):
    path = annotated.coco(tmp_path, BOXES)
    (tmp_path / "1.png").unlink(), (tmp_path / "2.png").unlink()
    refused(path, r"images\[1\].file_name '1.png' and 1 more of 3 is no file in .*::FOLDER")
    refused(f"{path}::{tmp_path}/none", "no such folder of images")


def test_a_set_without_boxes(tmp_path):
    refused(annotated.coco(tmp_path, []), "none of the 3 images has a box to learn from")


def test_most_boxes_dropped(tmp_path):
    boxes = [*BOXES, *[(10, 3, [100, 5, 10, 10])] * 3]
    refused(
        annotated.coco(tmp_path, boxes),
        "3 of 5 boxes would be dropped: boxes with no area inside the image: 3",
    )


def test_corners_in_place_of_sizes(tmp_path):
    boxes = [(10, 3, [20 + i % 9, 10 + i % 5, 50 + i % 9, 30 + i % 9]) for i in range(40)]
    refused(annotated.coco(tmp_path, boxes), "40 of 40 boxes reach over .* convert it")
    shrunk = [(10, 3, [x, y, w - x, h - y]) for _, _, (x, y, w, h) in boxes]
    assert open_boxes(str(annotated.coco(tmp_path, shrunk))).report.boxes == 40


def test_shares_in_place_of_px(tmp_path):
    refused(annotated.coco(tmp_path, [(10, 3, [0.1, 0.2, 0.3, 0.5])]), "shares of the image's size")


@pytest.mark.parametrize(
    "values, match",
    [
        ({"keypoints": [1, 2, 2, 3]}, SECOND + " of image '1.png': keypoints has 4 entries"),
        ({"keypoints": [1, float("nan"), 2, 0, 0, 0]}, r"image '1.png': keypoints\[1\] is nan"),
    ],
)
def test_keypoints(tmp_path, values, match):
    path = annotated.coco(tmp_path, BOXES)
    annotated.edit(path, "categories", 0, keypoints=["left", "right"])
    refused(annotated.edit(path, "annotations", 1, **values), match)


VOC = {"a": [("dog", 0, 1, 1, 30, 20)], "b": [("cat", 0, 2, 3, 20, 30)]}


@pytest.mark.parametrize(
    "old, new, match",
    [
        ("<xmin>2</xmin>", "<xmin>nan</xmin>", "b.xml: object 1 of image 'b.png': xmin is nan"),
        ("<xmin>2</xmin>", "<xmin>?</xmin>", "b.xml: object 1: xmin is '?'"),
        ("<xmin>2</xmin>", "", "b.xml: object 1: xmin is None"),
        ("<name>cat</name>", "", "b.xml: object 1 has no name"),
        ("bndbox", "polygon", "b.xml: object 1 has no bndbox"),
        ("</annotation>", "", "b.xml: cannot be read as XML"),
        ("<width>60", "<width>61.5", None),  # no size: taken from the file
        ("<width>60", "<width>90", "image 'b.png' are 90 and 40, but its file has 60 and 40"),
        ("<name>cat", "<name>cow", "b.xml: object 1: name is 'cow', which .*classes.txt"),
    ],
)
def test_voc(tmp_path, old, new, match):
    root = annotated.voc(tmp_path / "v", VOC)
    (root / "classes.txt").write_text("cat\ndog\n")
    file = root / "Annotations" / "b.xml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))
    if match is None:
        assert open_boxes(str(root)).image_size(1) == (40, 60)
    else:
        refused(root, match)


def test_voc_files(tmp_path):
    root = annotated.voc(tmp_path / "v", VOC)
    refused(f"{root}::train", "train.txt: no such split")
    (root / "ImageSets/Main").mkdir(parents=True)
    split = root / "ImageSets/Main/train.txt"
    split.write_text("a\nnone\n")
    refused(f"{root}::train", "train.txt: 'none' has no xml file")
    split.write_text("a 1\nb -1\n")
    refused(f"{root}::train", "line 1 is 'a 1'; give a list of whole images")
    split.write_text("a\na\n")
    refused(f"{root}::train", "name 2 is 'a', as already in entry 0")
    refused(f"{root}::val", "no such split; there are train")
    (root / "JPEGImages/b.png").unlink()
    refused(root, "b.xml: its image 'b' .with any extension. is not in")


@pytest.mark.parametrize(
    "line, match",
    [
        ("2 .5 .5 .1 .1", "b.txt: line 2: class is 2; the 2 classes have the numbers 0 to 1"),
        ("-1 .5 .5 .1 .1", "class is -1"),
        ("0.5 .5 .5 .1 .1", "class is 0.5"),
        ("0 .5 nan .1 .1", "b.txt: line 2 of image 'b.png': y is nan"),
        ("0 30 20 12 8", "b.txt: line 2 of image 'b.png': x is 30; give shares"),
        ("0 .5 .5 .1", "b.txt: line 2 is '0 .5 .5 .1'; give class x y width height"),
        ("0 .5 .5 .1 .1 .9", "b.txt: line 2 is"),
        ("cat .5 .5 .1 .1", "b.txt: line 2 is 'cat"),
    ],
)
def test_yolo(tmp_path, line, match):
    root = annotated.yolo(tmp_path, {"a": "0 .5 .5 .2 .2", "b": f"1 .5 .5 .2 .2\n{line}\n"})
    refused(f"{root}::train", match)


def test_yolo_files(tmp_path):
    root = annotated.yolo(tmp_path, {"a": "0 .5 .5 .2 .2", "b": "1 .5 .5 .2 .2"})
    refused(f"{root}::test", "has no split 'test'; give .*::train$")
    (root / "data.yaml").write_text("names: [cat]\nnc: 2\n")
    refused(f"{root}::train", "data.yaml: nc is 2, but names has 1")
    (root / "data.yaml").write_text("names: {1: cat, 2: dog}\n")
    refused(f"{root}::train", r"names has the keys \[1, 2\]; number them from 0")
    (root / "data.yaml").write_text("train: images/train\n")
    refused(f"{root}::train", "data.yaml: has no 'names'")
    (root / "data.yaml").unlink()
    refused(f"{root}::train", "no classes.txt; give the names")
    (root / "classes.txt").write_text("cat\ndog\n")
    (root / "images/train/b.png").unlink()
    refused(f"{root}::train", "b.txt: its image 'b' .with any extension. is not in")
    shutil.rmtree(root / "labels" / "train")
    refused(f"{root}::train", "there is no folder .*labels/train")


def test_an_image_that_is_none_is_reported_not_fatal(tmp_path):
    """A damaged file among many counts when it is its turn, as in all other training."""
    path = annotated.coco(tmp_path / "coco", BOXES)
    (tmp_path / "coco/1.png").write_bytes(b"")
    source = open_boxes(str(path))
    assert [f.examples for f in source.report.noticed] == [("'1.png': the file is empty",)]
    assert len(source.boxes(1).labels) == 1 and source.image_size(1) == (60, 40)
    lines = dict.fromkeys("abc", "0 .5 .5 .2 .2")
    root = annotated.yolo(tmp_path / "yolo", lines)
    (root / "images/train/b.png").write_bytes(b"no image")
    source = open_boxes(f"{root}::train")
    assert source.image_size(1) == (0, 0) and len(source.boxes(1).labels) == 0
    assert [f.what for f in source.report.dropped] == ["boxes on unreadable images of unknown size"]
