"""What the tests of whole commands share."""

from __future__ import annotations

from typing import Any

import pytest
from case import Case


@pytest.fixture(scope="module")
def case(colours, teacher_file, tmp_path_factory):
    def make(**changes: Any) -> Case:
        return Case(colours, teacher_file, tmp_path_factory.mktemp("case"), **changes)

    return make
