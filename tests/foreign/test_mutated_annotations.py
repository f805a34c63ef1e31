"""Boxes, masks, shapes and predictions of other tools, damaged (`kinds_annotations.py`,
`kinds_shapes.py`)."""

from __future__ import annotations

from pathlib import Path

import pytest
from sandbox import trusted

INPUTS = [
    ("annotations.coco", 100),
    ("annotations.voc", 100),
    ("annotations.yolo", 100),
    ("annotations.masks", 100),
    ("annotations.panoptic", 80),
    ("annotations.generated", 60),
    ("annotations.results", 100),
    ("shapes.labelme", 60),
    ("shapes.cvat", 60),
    ("shapes.create_ml", 30),
]


@pytest.mark.parametrize(("kind", "count"), INPUTS)
def test_mutated_inputs_are_read_or_refused_in_a_sentence(kind: str, count: int, tmp_path: Path):
    assert not trusted(kind, count, tmp_path)
