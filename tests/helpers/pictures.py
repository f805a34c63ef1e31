"""The plots of a report as one pixel each, where a test is about something else.

Laying out and drawing the plots takes longer than the steps of a short run. Everything of ours
still happens, down to the page with its pictures; only matplotlib's drawing is left out, and the
axes of the curves of a training. One run of each kind is drawn in truth: see `real_pictures` in
`conftest.py` and `draw` in `sabotage.py`. Here a run writes its page when it ends; those of
`sabotage.py` write one at the first evaluation, too.
"""

from __future__ import annotations

import base64
import contextlib
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest
from matplotlib.figure import Figure

from ssld.engine import evaluation
from ssld.report import plots, training

SAVEFIG = Figure.savefig

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsNzDzQAAAABJRU5ErkJggg=="
)


def one_pixel(_: Figure, file: BinaryIO, **__: Any) -> None:
    """What stands in for `Figure.savefig`."""
    file.write(PIXEL)


class NoAxes:
    """What stands in for `Figure.subplots` where the same plots are drawn by another run."""

    def __getattr__(self, name: str) -> NoAxes:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_: Any, **__: Any) -> NoAxes:
        return self

    def __getitem__(self, _: Any) -> NoAxes:
        return self


NO_CURVES = SimpleNamespace(
    **{**vars(plots), "axes": NoAxes(), "curves": lambda *_, **__: Figure()}
)
"""What stands in for the module of plots in a training's report."""


def leave_out(patch: pytest.MonkeyPatch) -> None:
    """A pixel for each plot."""
    patch.setattr(evaluation, "REPORT_SECONDS", math.inf)
    patch.setattr(Figure, "savefig", one_pixel)
    patch.setattr(training, "plots", NO_CURVES)


@contextlib.contextmanager
def left_out() -> Iterator[None]:
    """Without matplotlib's drawing."""
    with pytest.MonkeyPatch.context() as patch:
        leave_out(patch)
        yield


@contextlib.contextmanager
def drawn() -> Iterator[None]:
    """With matplotlib's own drawing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "REPORT_SECONDS", math.inf)
        patch.setattr(Figure, "savefig", SAVEFIG)
        patch.setattr(training, "plots", plots)
        yield
