"""What the tests of whole commands share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pictures
import pytest
from case import Case


@pytest.fixture(scope="module")
def case(colours, teacher_file, tmp_path_factory):
    def make(**changes: Any) -> Case:
        return Case(colours, teacher_file, tmp_path_factory.mktemp("case"), **changes)

    return make


@pytest.fixture(scope="module", autouse=True)
def quick_pictures() -> Iterator[None]:
    """Runs in this process draw no plots, unless the test asks for `real_pictures`."""
    with pictures.left_out():
        yield


@pytest.fixture
def real_pictures() -> Iterator[None]:
    """For a test whose runs draw the plots of their reports."""
    with pictures.drawn():
        yield
