"""The plots of a report as one pixel each, where a test is about something else.

Laying out and drawing the plots takes longer than the steps of a short run. Everything of ours
still happens, down to the page with its pictures; only matplotlib's drawing is left out. One run of
each kind is drawn in truth: see `real_pictures` in `conftest.py` and `draw` in `sabotage.py`.
"""

from __future__ import annotations

import base64
from typing import Any, BinaryIO

from matplotlib.figure import Figure

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsNzDzQAAAABJRU5ErkJggg=="
)


def one_pixel(_: Figure, file: BinaryIO, **__: Any) -> None:
    """What stands in for `Figure.savefig`."""
    file.write(PIXEL)
