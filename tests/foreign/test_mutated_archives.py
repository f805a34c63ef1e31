"""Tar shards, tars in tars, Parquet manifests, zip archives, lists and bundles, damaged
(`kinds_archives.py`)."""

from __future__ import annotations

from pathlib import Path

import pytest
from sandbox import trusted

INPUTS = [
    ("archives.tar", 120),
    ("archives.tars", 100),
    ("archives.parquet", 120),
    ("archives.zip", 80),
    ("archives.list", 60),
    ("archives.bundle", 100),
]


@pytest.mark.parametrize(("kind", "count"), INPUTS)
def test_mutated_inputs_are_read_or_refused_in_a_sentence(kind: str, count: int, tmp_path: Path):
    assert not trusted(kind, count, tmp_path)
