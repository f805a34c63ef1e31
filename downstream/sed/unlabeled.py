"""The images without annotations: opened, and compared with those that have some."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from downstream.dense.preflight import THREADS, Finding, Readable, findings, in_both, same_bytes
from downstream.dense.sources import Sources, refuse_held_out
from downstream.detection.data.boxes import BoxSource
from downstream.sed.views import pixels_sum
from ssld.common.errors import InputError
from ssld.data.decode import Unreadable, decode
from ssld.data.source import Source, Subset
from ssld.data.sources import open_source
from ssld.engine.processes import Processes, on_main


@dataclass(frozen=True)
class UnlabeledReport:
    """What is known of a source of images without annotations before the first step."""

    path: str
    images: int
    noticed: list[Finding]

    def facts(self) -> list[str]:
        return [f"{self.path}: {self.images:,} images", *(x.line() for x in self.noticed)]

    lines = facts

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def open_unlabeled(
    processes: Processes, paths: list[str], sources: Sources[BoxSource]
) -> tuple[list[Source], list[UnlabeledReport]]:
    """The images of `paths` that are not labeled, by place or to the byte (with a labeled share
    these are the drawn ones: the paper's unlabeled set is the rest, section 4).

    Raises:
        InputError: a source that cannot be opened; images that are held out; none is left.
    """
    opened = []
    for path in paths:
        try:
            opened.append(open_source(path))
        except InputError as error:
            raise InputError(f"data.unlabeled: {error}") from error
    refuse_held_out(processes, sources.val, opened, "data.unlabeled")
    left, reports = [], []
    labeled = on_main(processes, _labeled, sources, opened)
    for source, rows in zip(opened, labeled, strict=True):
        if len(rows) < len(source):
            left.append(Subset(source, np.array(rows, np.int64), keep=False) if rows else source)
        places = [source.location(row) for row in rows]
        noticed = findings("left out, as they are labeled", places)
        reports.append(UnlabeledReport(source.path, len(source) - len(rows), noticed))
    if not left:
        raise InputError(
            f"data.unlabeled: all {sum(map(len, opened))} images are labeled ones of data.train, "
            "so none is left to learn from; give others, or a data.labeled_share below 1"
        )
    return left, reports


def _labeled(sources: Sources[BoxSource], opened: list[Source]) -> list[list[int]]:
    """Of each source the images that are labeled, too."""
    found = {*in_both(sources.train, opened), *same_bytes(sources.train, opened)}
    return [
        [row for row in range(len(source)) if source.location(row) in found] for source in opened
    ]


def held_out_sums(val: Sequence[Readable]) -> dict[bytes, str]:
    """{`pixels_sum`: where it is} of all held-out images that can be read.

    An unlabeled image that is one of them, stored anew, is told when it is its turn: to decode a
    hundred thousand before the first step would take minutes at each start.
    """
    places = [(source, i) for source in val for i in range(len(source))]
    with ThreadPoolExecutor(THREADS) as pool:
        sums = list(pool.map(lambda place: _sum(*place), places))
    known = zip(sums, places, strict=True)
    return {digest: x.location(i) for digest, (x, i) in known if digest}


def _sum(source: Readable, i: int) -> bytes | None:
    try:
        return pixels_sum(decode(source.read(i)))
    except (OSError, Unreadable):
        return None
