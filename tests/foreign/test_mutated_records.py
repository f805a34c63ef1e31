"""Run folders, checkpoints and records, damaged (`kinds_records.py`)."""

from __future__ import annotations

from pathlib import Path

import pytest
from sandbox import trusted

INPUTS = [
    ("records.run", 80),
    ("records.release", 40),
    ("records.checkpoint", 80),
    ("records.held_out", 80),
    ("records.states", 80),
]


@pytest.mark.parametrize(("kind", "count"), INPUTS)
def test_mutated_inputs_are_read_or_refused_in_a_sentence(kind: str, count: int, tmp_path: Path):
    assert not trusted(kind, count, tmp_path)
