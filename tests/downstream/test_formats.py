"""Every layout of docs/formats.md, written as its tool writes it and read back: boxes.

Each writer gets the same pictures and boxes (`SCENE`), and returns the path that a user would give.
Spellings are those of the tools' own sources, which docs/formats.md names.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import formats_written as written
import numpy as np
import pytest
from formats_written import BOX_WRITERS, SCENE, pictures

from downstream.detection.data.boxes import BoxSource, open_boxes
from ssld.common.errors import InputError


def found(source: BoxSource) -> dict[str, list[tuple[str, list[float]]]]:
    """Class and box of each object, by the picture's stem."""
    names = source.class_names
    return {
        Path(source.sample_id(i)).stem: sorted(
            (names[label], box)
            for label, box in zip(
                source.boxes(i).labels.tolist(),
                source.boxes(i).xyxy.round().tolist(),
                strict=True,
            )
        )
        for i in range(len(source))
    }


def wanted() -> dict[str, list[tuple[str, list[float]]]]:
    return {stem: sorted((name, list(map(float, box))) for name, box in objects)
            for stem, objects in SCENE.items()}  # fmt: skip


@pytest.mark.parametrize("write", BOX_WRITERS, ids=lambda write: write.__name__)
def test_a_layout_of_boxes_is_read_back(tmp_path: Path, write: Callable[[Path], str]):
    path = write(tmp_path)
    source = open_boxes(path)
    assert found(source) == wanted(), source.report.remarks
    assert sorted(source.class_names) == ["cat", "dog"]
    if "::" in path and not path.endswith((".xml", ".json")):
        with pytest.raises(InputError):  # and no split that is not there
            open_boxes(f"{path.partition('::')[0]}::nowhere")


def test_yolo_without_names_counts_its_classes(tmp_path):
    path = written.ultralytics(tmp_path)
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/train\nnc: 2\n")
    assert open_boxes(path).class_names == ["class_0", "class_1"]


def test_a_list_of_absolute_and_relative_paths(tmp_path, monkeypatch):
    written.yolo_list_of_another_machine(tmp_path)
    (tmp_path / "train.txt").write_text(f"{tmp_path}/images/a.jpg\n./images/b.jpg\n")
    monkeypatch.chdir(tmp_path)
    assert found(open_boxes("data.yaml::train")) == wanted()


def test_a_set_that_was_not_downloaded_says_so(tmp_path):
    (tmp_path / "coco8.yaml").write_text(
        "path: coco8\ntrain: images/train\nval: images/val\nnames:\n  0: person\n"
        "download: |\n  from ultralytics.utils.downloads import download\n  download('x')\n"
    )
    with pytest.raises(InputError, match="its `download` says is not run: fetch the set"):
        open_boxes(f"{tmp_path}/coco8.yaml::train")


def test_two_layouts_in_one_folder_want_a_choice(tmp_path):
    written.voc(tmp_path)
    written.label_studio(tmp_path)
    (tmp_path / "images/b.jpg").unlink()
    (tmp_path / "labels/b.txt").unlink()
    with pytest.raises(InputError, match="has both VOC's xml files and YOLO's labels; choose one"):
        open_boxes(str(tmp_path))
    assert open_boxes(f"{tmp_path}/Annotations").report.format == "VOC"
    assert open_boxes(f"{tmp_path}/labels").report.format == "YOLO"


@pytest.mark.parametrize("other", [written.labelme, written.labelimg_yolo, written.create_ml])
def test_files_of_two_tools_beside_the_pictures(tmp_path, other):
    written.labelimg_voc(tmp_path)
    other(tmp_path)
    with pytest.raises(InputError, match="has both VOC's xml files and .*; choose one"):
        open_boxes(str(tmp_path))


def test_two_lists_of_classes_that_differ_are_refused(tmp_path):
    written.label_studio(tmp_path)
    (tmp_path / "labels/classes.txt").write_text("dog\ncat\n")
    with pytest.raises(InputError, match="labels/classes.txt: has other names than .*classes.txt"):
        open_boxes(str(tmp_path))


def test_labelme_shapes(tmp_path):
    """Of one group, a circle, and what has no area."""
    pictures(tmp_path)
    shapes = [
        written.shape("cat", [[10, 12], [20, 12], [20, 44]], group_id=3),
        written.shape("cat", [[30, 20], [40, 20], [40, 40]], group_id=3),
        written.shape("dog", [[40, 30], [40, 40]], "circle"),
        written.shape("dog", [[4, 4]], "point"),
        written.shape("dog", [[4, 4], [9, 9]], "line"),
        written.shape("__ignore__", [[0, 0], [9, 0], [9, 9]]),
    ]
    written.labelme_file(tmp_path, "a", shapes)
    source = open_boxes(str(tmp_path))
    assert found(source) == {"a": [("cat", [10, 12, 40, 44]), ("dog", [30, 20, 50, 40])]}
    said = " ".join(source.report.remarks)
    assert "shapes that have no area, left out: 1 line, 1 point" in said
    assert "pictures without a JSON file, left out: 1" in said and "__ignore__" in said


def test_instance_masks_of_shapes(tmp_path):
    """labelme's mask, a PNG of its own box, and CVAT's, run lengths of its own box."""
    from downstream.dense.outlines import decode

    part = np.eye(6, 4, dtype=np.uint8)  # 6 high, 4 wide
    whole = np.zeros(written.SIZE, np.uint8)
    whole[20:26, 30:34] = part
    for write in (written.labelme_mask, written.cvat_mask):
        source = open_boxes(write(tmp_path / write.__name__, part, 30, 20), masks=True)
        boxes = source.boxes(0)
        assert boxes.masks and np.array_equal(decode(boxes.masks)[0], whole)
        assert boxes.xyxy.tolist() == [[30, 20, 34, 26 if write is written.cvat_mask else 24]]


def test_a_turned_box_of_cvat_is_the_box_around_it(tmp_path):
    path = written.cvat(tmp_path)
    file = tmp_path / "annotations.xml"
    text = file.read_text().replace('xtl="10.00"', 'rotation="90.00" xtl="10.00"')
    file.write_text(text)
    # 30 x 32 px about 25, 28, turned by a quarter
    assert found(open_boxes(path))["a"] == [("cat", [9, 13, 41, 43])]


def test_a_video_and_a_project_of_cvat(tmp_path):
    path = written.cvat_project(tmp_path).partition("::")[0]
    with pytest.raises(InputError, match="which subset.* give .*::Test or .*::Train"):
        open_boxes(path)
    file = tmp_path / "annotations.xml"
    file.write_text(file.read_text().replace("<image", "<track></track><image", 1))
    with pytest.raises(
        InputError, match="tracks of a video and images, too; export it as CVAT for images"
    ):
        open_boxes(path)


def test_ids_that_are_text_go_into_the_results(tmp_path):
    source = open_boxes(written.coco_text_ids(tmp_path))
    assert source.image_ids == ["img-a", "img-b"] and source.category_ids == [3, 12]
    content = json.loads((tmp_path / "set.json").read_text())
    for entry in content["categories"]:
        entry["id"] = f"c{entry['id']}"
    for entry in content["annotations"]:
        entry["category_id"] = f"c{entry['category_id']}"
    (tmp_path / "set.json").write_text(json.dumps(content))
    source = open_boxes(str(tmp_path / "set.json"))
    assert source.category_ids == [1, 2]
    assert "ids of categories are text: results have the numbers from 1 on" in source.report.remarks


FAULTS = {
    "labelme": [
        ('"points": [', '"points": [[1], ', r"shapes\[0\].points is .*; give a list of \[x, y\]"),
        ('"label": "cat"', '"label": null', r"shapes\[0\].label is None; give a name"),
        ('"shapes": [', '"shapes": [5, ', r"shapes is \[5, .*; give labelme's list"),
        ('"imagePath": "a.jpg"', '"imagePath": "z.jpg"', None),
        ("{", "{,", "a.json: cannot be read as JSON"),
    ],
    "cvat": [
        ('xtl="10.00"', 'xtl="x"', "image 'a.jpg': box 1: xtl is 'x'; give a number"),
        ('label="cat"', 'label="cow"', "box 1: label is 'cow', which meta does not have"),
        ('name="a.jpg"', 'name="b.jpg"', "the name of image 1 is 'b.jpg', as already"),
        ('name="a.jpg"', 'name="z.jpg"', "the name of image 0 'z.jpg' is no file in"),
        ("</image>", "", "cannot be read as XML"),
    ],
    "roboflow_create_ml": [
        ('"x": ', '"x": null, "z": ', r"\[0\].annotations\[0\] is .*; give a label"),
        ('"image": "a.jpg"', '"image": "b.jpg"', r"\[1\].image is 'b.jpg', as already"),
        ('"image": "a.jpg"', '"image": "z.jpg"', r"\[0\].image 'z.jpg' is no file in"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "tool, old, new, said", [(k, *case) for k, v in FAULTS.items() for case in v]
)
def test_files_that_are_damaged(tmp_path, tool, old, new, said):
    path = getattr(written, tool)(tmp_path)
    file = next(x for x in sorted(tmp_path.rglob("*")) if x.suffix in (".json", ".xml"))
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    if said is None:  # the picture that is named as the file is
        assert found(open_boxes(path)) == wanted()
        return
    with pytest.raises(InputError, match=said) as caught:
        open_boxes(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
