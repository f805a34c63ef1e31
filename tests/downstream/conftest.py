"""Runs in this process draw no plots, which would take most of their time."""

from __future__ import annotations

from collections.abc import Iterator

import pictures
import pytest


@pytest.fixture(scope="module", autouse=True)
def quick_pictures() -> Iterator[None]:
    with pictures.left_out():
        yield
