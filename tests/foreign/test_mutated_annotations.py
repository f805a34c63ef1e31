"""Boxes, masks and predictions of other tools, damaged (`kinds_annotations.py`)."""

from __future__ import annotations

from pathlib import Path

import pytest
from sandbox import trusted

INPUTS = [
    ("annotations.coco", 250),
    ("annotations.voc", 250),
    ("annotations.yolo", 250),
    ("annotations.masks", 250),
    ("annotations.panoptic", 200),
    ("annotations.results", 200),
]


@pytest.mark.parametrize(("kind", "count"), INPUTS)
def test_mutated_inputs_are_read_or_refused_in_a_sentence(kind: str, count: int, tmp_path: Path):
    assert not trusted(kind, count, tmp_path)
