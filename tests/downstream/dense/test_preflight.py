"""The preflight report: what is printed and written."""

from __future__ import annotations

import hashlib
import json

import annotated
import pytest
from scenes import boxes, make_scenes

from downstream.dense.preflight import in_both, write_preflight
from downstream.detection.data.boxes import open_boxes
from ssld.cli.run import main
from ssld.common.errors import InputError

BOXES = [
    (10, 3, [1, 2, 20, 30]),
    (10, 7, [5, 6, 10, 20]),
    (10, 7, [5, 6, 0, 20]),
    (20, 3, [30, 1, 20, 5]),
]


def test_what_is_printed_and_written(tmp_path):
    path = annotated.coco(tmp_path / "set", BOXES)
    source = open_boxes(str(path))
    lines = write_preflight(tmp_path, {"train": [source.report]})
    assert lines[0] == (
        f"train: {path} (COCO): 3 images (1 negatives, without boxes), 3 boxes "
        "(0 crowd or difficult, untrained), 3 classes"
    )
    assert lines[1].strip().endswith("0: cat, 3, 2, 1: dog, 7, 1, 2: bird, 90, 0")
    text = "\n".join(lines)
    assert "no box of 1 classes: bird" in text
    assert "dropped: boxes without a width and height above 0: 1 (annotations[2] (id 102)" in text
    assert "fixed: boxes over the edge by more than 1 px, cut: 1 (annotations[3]" in text
    content = json.loads((tmp_path / "preflight.json").read_text())
    (train,) = content["train"]
    assert train["classes"][1] == {"name": "dog", "category_id": 7, "boxes": 1, "images": 1}
    inner = hashlib.sha256(path.read_bytes()).digest()
    assert train["files_sha256"] == hashlib.sha256(inner).hexdigest()
    assert train["dropped"][0]["count"] == 1 and content["in_train_and_val"] == []
    assert "dropped: boxes without" in (tmp_path / "preflight.md").read_text()


def test_many_classes_are_not_all_printed(tmp_path):
    names = {i: f"class {i}" for i in range(1, 101)}
    report = open_boxes(str(annotated.coco(tmp_path, BOXES[:1], categories=names))).report
    assert (
        "class 30, 30, 0, 70 more" in report.lines()[1] and len(report.as_dict()["classes"]) == 100
    )


def test_images_in_training_and_evaluation(tmp_path):
    path = annotated.coco(tmp_path, BOXES)
    other = tmp_path / "val.json"
    other.write_text(path.read_text())
    train, val = open_boxes(str(path)), open_boxes(str(other))
    shared = in_both([train], [val])
    assert shared == [str(tmp_path / f"{i}.png") for i in range(3)]
    lines = write_preflight(tmp_path, {"train": [train.report], "val": [val.report]}, shared)
    assert lines[-1].startswith("warning: 3 images are in train and in val")
    assert len(json.loads((tmp_path / "preflight.json").read_text())["in_train_and_val"]) == 3


def test_a_folder_that_cannot_be_written(tmp_path):
    source = open_boxes(str(annotated.coco(tmp_path, BOXES)))
    with pytest.raises(InputError):
        write_preflight(tmp_path / "none", {"train": [source.report]})


def test_the_page_has_it_as_tables_and_escapes_foreign_names(tmp_path):
    root = make_scenes(tmp_path / "scenes", train=2, val=1)
    content = json.loads((root / "train.json").read_text())
    content["categories"][0]["name"] = "<i>red"
    (root / "train.json").write_text(json.dumps(content))
    words = [f"--data.{split}={boxes(root, 'train')}" for split in ("train", "val")]
    words += ["--steps=1", "--batch_size=2", "--log_every_steps=1", "--trackers=[]"]
    words += ["--data.workers=0", "--backbone=test_resnet", "--backbone.pretrained=false"]
    words += ["--detector.name=ttfnet", "--augment.sizes=[64]", "--augment.test_size=64"]
    assert main(["detection", *words, f"--out={tmp_path / 'run'}"]) == 0
    page = (tmp_path / "run/report.html").read_text()
    data = page.partition("<h2>Data</h2>")[2].partition("<h2>Network")[0]
    assert data.count("<td>&lt;i&gt;red</td>") == 2 and "<i>" not in data
    assert "<th>class</th><th>name</th><th>category id</th><th>boxes</th>" in data
    assert "Warning: 2 images are in train and in val" in data
    assert "```" not in page and "# Preflight" not in page
