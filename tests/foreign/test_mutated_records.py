"""Run folders, checkpoints and records, damaged (`kinds_records.py`)."""

from __future__ import annotations

from pathlib import Path

import pytest
from sandbox import trusted

INPUTS = [
    ("records.run", 200),
    ("records.release", 100),
    ("records.checkpoint", 200),
    ("records.held_out", 200),
    ("records.states", 200),
]


@pytest.mark.parametrize(("kind", "count"), INPUTS)
def test_mutated_inputs_are_read_or_refused_in_a_sentence(kind: str, count: int, tmp_path: Path):
    assert not trusted(kind, count, tmp_path)
