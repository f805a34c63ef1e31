"""Class names with anything in them, in drawings, plots, pages and reports of downstream runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from foreign_sets import box, coco
from PIL import Image

from downstream.dense.drawing import draw_boxes, draw_lines
from downstream.dense.preflight import write_preflight
from downstream.dense.texts import short_line, shown
from downstream.detection.data.boxes import open_boxes
from downstream.segmentation.data.masks import open_masks
from downstream.segmentation.data.preflight import inspect
from downstream.segmentation.task import confusion_figure

NAMES = [
    "$5_to_$10", "over_$20_$", "$\\frac{$", "<script>", "a\nb\tc", "鱼", "سمكة", "", "  ",
    "x" * 3000, "a\x1b[31mb", "\u202eabc", "🐟", "%s {0}", "|a|b|", "```",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_in_drawings(name):
    pixels = np.zeros((40, 60, 3), np.uint8)
    drawn = draw_boxes(pixels, np.array([[5.0, 5, 30, 30]]), [0], [name], [0.5])
    assert drawn.shape == pixels.shape and drawn.any()
    assert draw_lines(pixels, [f"{name} 50 %"]).shape == pixels.shape


def test_names_in_a_figure():
    count = len(NAMES)
    matrix = np.eye(count, dtype=np.int64) * 5
    assert "data:image/png;base64," in confusion_figure(matrix, NAMES)


def test_names_in_reports(tmp_path):
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)]
    rows = [{**box(i, [5, 5, 20, 20]), "category_id": i + 1} for i in range(len(NAMES))]
    source = open_boxes(coco(tmp_path / "boxes", rows, categories=categories))
    assert source.class_names == NAMES
    lines = write_preflight(tmp_path, {"train": [source.report]})
    assert all("\n" not in line and "\x1b" not in line for line in lines)
    assert max(map(len, lines)) < 3000
    content = json.loads((tmp_path / "preflight.json").read_text())
    assert [x["name"] for x in content["train"][0]["classes"]] == NAMES


def test_names_of_masks_in_reports(tmp_path):
    root = tmp_path / "set"
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(root / "images/a.png")
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 2).save(root / "masks/a.png")
    names = [name for name in NAMES if name.strip()] + [""]
    (root / "classes.json").write_text(json.dumps(names))
    report = inspect(open_masks(str(root)))
    assert all("\n" not in line and "\x1b" not in line for line in report.lines())
    Path(tmp_path / "x.json").write_text(json.dumps(report.as_dict()))


def test_values_are_shown_short_and_on_one_line():
    deep: list = []
    for _ in range(900):
        deep = [deep]
    for value in (deep, "x" * 10**6, [1] * 10**6, {"a\n": "\ud800"}, "\x1b[2J", 10**4000, b"\xff"):
        said = shown(value)
        assert len(said) <= 200 and said.isprintable()
        said.encode()
    assert short_line("a\n b") == "a b" and len(short_line("x" * 999, 24)) == 24
