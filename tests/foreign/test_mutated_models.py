"""Exported folders, safetensors, pickles, segmenters and releases, damaged (`kinds_models.py`)."""

from __future__ import annotations

from pathlib import Path

import pytest
from sandbox import trusted

INPUTS = [
    ("models.folder", 120),
    ("models.file", 80),
    ("models.torch", 60),
    ("models.pickle", 300),
    ("models.segmenter", 30),
]


@pytest.mark.parametrize(("kind", "count"), INPUTS)
def test_mutated_inputs_are_read_or_refused_in_a_sentence(kind: str, count: int, tmp_path: Path):
    assert not trusted(kind, count, tmp_path)
