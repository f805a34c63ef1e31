"""What a detection run says before its first step: boxes that its views lose, more boxes than a
detector has places for, packages that are missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pictures
import pytest
from foreign_sets import box, coco

from downstream.detection.command import note_many, note_other_ids, note_small
from downstream.detection.config import BoxAugmentConfig
from downstream.detection.data.boxes import open_boxes
from ssld.cli.run import main
from ssld.common.errors import InputError

COMMON = [
    "--steps=1", "--batch_size=2", "--trackers=[]", "--data.workers=0", "--backbone=test_resnet",
    "--backbone.pretrained=false", "--schedule.warmup_epochs=0", "--augment.sizes=[64]",
    "--augment.test_size=64", "--augment.longest=128",
]  # fmt: skip


def detect(train: str, out: Path, *words: str) -> int:
    return main(["detection", *COMMON, f"--data.train={train}", f"--data.val={train}",
                           f"--out={out}", *words])  # fmt: skip


TINY = [box(i, [50, 50, 1.2, 1.2]) for i in range(6)]
FEW = [*TINY[:2], *[box(i, [10, 10, 40, 40]) for i in range(6)]]
"""1.2 px of 120 are .85 px of a view of 64 x 85."""


def test_boxes_that_vanish_in_every_view(tmp_path, capsys):
    path = coco(tmp_path / "set", TINY)
    assert detect(path, tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "data.train: all 6 boxes are under 1 px in every training view" in said
    assert "augment.sizes" in said and not (tmp_path / "run").exists()


def found(path: str, **augment) -> dict[str, int]:
    source = open_boxes(path)
    note_small([source], BoxAugmentConfig(**{"longest": None, **augment}))
    return {x.what.split(",")[0]: x.count for x in source.report.noticed if "px" in x.what}


def test_boxes_that_some_views_lose_are_counted(tmp_path):
    path = coco(tmp_path, FEW)
    every = "boxes under 1 px in every training view"
    some = "boxes under 1 px in the smallest training views"
    assert found(path, sizes=[64]) == {every: 2}
    assert found(path, sizes=[64, 96]) == {some: 2}
    assert found(path, sizes=[96], longest=96) == {every: 2}
    assert found(path, sizes=[96]) == found(path, sizes=[640]) == {}
    assert found(path, resize="square", sizes=[96]) == {every: 2}  # .96 px wide
    assert found(path, sizes=[64], crop=True) == {some: 2}  # a crop enlarges
    assert found(path, sizes=[160], expand=4.0) == {some: 2}
    assert found(path, resize="longer", sizes=[64]) == {every: 2}
    assert found(path, resize="longer", sizes=[64], scale=(0.5, 2.0)) == {some: 2}


def test_the_count_is_what_the_views_drop(tmp_path):
    """Against the views themselves."""
    from downstream.detection.data.transforms import TrainBoxView

    source = open_boxes(coco(tmp_path, [box(i, [9, 9, 0.7 + 0.1 * i, 3]) for i in range(12)]))
    augment = BoxAugmentConfig(sizes=[90], longest=None)
    note_small([source], augment)
    (said,) = [x for x in source.report.noticed if "every training view" in x.what]
    view = TrainBoxView(augment, 0)
    kept = sum(len(view(source, i, 0, 0)[1]["labels"]) for i in range(6))
    assert said.count == 12 - kept == 3


def test_crowd_boxes_are_not_counted(tmp_path):
    rows = [{**entry, "iscrowd": 1} for entry in TINY[:2]] + FEW[2:]
    assert found(coco(tmp_path, rows), sizes=[64]) == {}


def test_more_boxes_than_queries(tmp_path, monkeypatch, capsys):
    pictures.leave_out(monkeypatch)
    many = [box(0, [i % 15 * 8, i // 15 * 8, 7, 7], id=i) for i in range(150)]
    path = coco(tmp_path / "set", [*many, *[box(1000 + i, [10, 10, 40, 40]) for i in range(6)]])
    small = '{"width": 16, "layers": 1, "heads": 2, "ffn_width": 16}'
    words = ["--detector.name=detr", f"--detector.args={small}"]
    assert detect(path, tmp_path / "run", *words) == 0
    report = json.loads((tmp_path / "run/preflight.json").read_text())
    whats = {role: [x["what"] for x in report[role][0]["noticed"]] for role in ("train", "val")}
    assert (
        "images with more boxes than the 100 that detector.args.num_queries has places for, "
        "51 boxes beyond"
    ) in whats["train"]
    assert any("than the 100 that are found in one, 51" in what for what in whats["val"])
    assert "'im0.jpg': 151" in capsys.readouterr().out


def test_hundred_boxes_are_no_more_than_hundred(tmp_path):
    source = open_boxes(coco(tmp_path, [box(0, [i % 15 * 8, 8, 7, 7], id=i) for i in range(99)]))
    note_many([source], 100, "are found in one")
    assert not any("found in one" in x.what for x in source.report.noticed)


def test_ids_of_several_held_out_files(tmp_path):
    first = open_boxes(coco(tmp_path / "a", FEW))
    other = [{**entry, "category_id": 9} for entry in FEW]
    second = open_boxes(coco(tmp_path / "b", other, categories=[{"id": 9, "name": "fish"}]))
    note_other_ids([first, second])
    said = {x.what.split(",")[0]: x.count for x in second.report.noticed}
    assert said["image ids of other held-out sources"] == 6
    assert any(what.startswith("classes with another id than in") for what in said)
    assert not any("held-out" in x.what for x in first.report.noticed)


@pytest.mark.parametrize(
    "command, words, package",
    [
        ("detection", [*COMMON, "--data.train=no", "--data.val=no"], "faster_coco_eval"),
        ("detection", [*COMMON, "--data.train=no", "--data.val=no", "--detector.name=detr"],
         "transformers"),
        ("segmentation", ["--steps=1", "--backbone=test_resnet", "--data.train=no",
                             "--data.val=no", "--segmenter.name=deeplabv3plus"],
         "segmentation_models_pytorch"),
        ("export", ["no"], "onnxruntime"),
        ("export", ["no"], "onnx"),
        ("ab", ["--task=detection", "--config=F.yaml", "--backbones", "a", "b"],
         "faster_coco_eval"),
    ],
)  # fmt: skip
def test_a_missing_package_is_named_before_anything_is_read(
    tmp_path, monkeypatch, capsys, command, words, package
):
    monkeypatch.chdir(tmp_path)
    Path("F.yaml").write_text("steps: 1\n")
    monkeypatch.setitem(sys.modules, package, None)
    more = [] if command == "export" else ["--out=run"]
    assert main([command, *words, *more]) == 2
    said = capsys.readouterr().err
    extra = "onnx" if "onnx" in package else "downstream"
    assert package.replace("_", "-") in said and f"pip install 'ssld[{extra}]'" in said
    assert not Path("run").exists()


def test_a_detector_without_its_package_says_so_when_it_is_opened(monkeypatch):
    from downstream.detection.networks import options

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="detr needs the package transformers"):
        options("detr", {})
