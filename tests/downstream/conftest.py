"""Runs in this process draw no plots, which would take most of their time."""

from __future__ import annotations

from collections.abc import Iterator

import pictures
import pytest
from matplotlib.figure import Figure


@pytest.fixture(scope="module", autouse=True)
def quick_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", pictures.one_pixel)
        yield
