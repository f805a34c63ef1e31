"""The preflight report of annotated images: what was understood, mended and left out."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from downstream.dense.generated import is_generated, pixel_sums
from ssld.common.files import write_atomically
from ssld.curate.sets.index import measure
from ssld.data.decode import Unreadable
from ssld.data.source import Images

THREADS = 4
"""That decode held-out images."""
IN_BOTH = "in_train_and_val"
"""Key of preflight.json, beside the roles of the sources."""
EXAMPLES = 5
"""Places named of each finding."""


@dataclass(frozen=True)
class Finding:
    """Something that befell `count` boxes or images."""

    what: str
    count: int
    examples: tuple[str, ...]
    """The first EXAMPLES places."""

    def line(self) -> str:
        more = "; ..." if self.count > 2 else ""
        return f"{self.what}: {self.count} ({'; '.join(self.examples[:2])}{more})"


def findings(what: str, places: Sequence[str], count: int | None = None) -> list[Finding]:
    """A finding with the first of `places`; none where there are no places.

    Args:
        count: of what was found, by default one a place.
    """
    number = len(places) if count is None else count
    return [Finding(what, number, tuple(places[:EXAMPLES]))] if places else []


class Report(Protocol):
    """What is known of one annotated source before the first step."""

    def facts(self) -> list[str]:
        """Sentences, maybe of several lines, of all but the single classes; the first says what the
        source is."""
        ...

    def lines(self) -> list[str]: ...

    def as_dict(self) -> dict[str, Any]: ...


class Readable(Images, Protocol):
    """A source of images, annotated or not; see `ssld.data.source.Source`."""

    def read(self, i: int) -> bytes: ...


class Annotated(Readable, Protocol):
    """A source of boxes or masks."""

    class_names: list[str]

    def subset(self, images: np.ndarray) -> Self: ...


def in_both(first: Sequence[Readable], second: Sequence[Readable]) -> list[str]:
    """Image files that two lists of sources share: evaluation on them would be on training data."""
    seen, places = (
        [source.location(i) for source in sources for i in range(len(source))]
        for sources in (first, second)
    )
    shared = set(seen).intersection(places)
    return [place for place in places if place in shared]


def same_bytes(first: Sequence[Readable], second: Sequence[Readable]) -> list[str]:
    """Image files of `second` that are, to the byte, one of `first`. Only files of the same size
    are read; what cannot be read is like no other."""
    sizes = [_by_size(sources) for sources in (first, second)]
    common = sizes[0].keys() & sizes[1].keys()
    seen = {digest for size in common for digest, _ in _digests(sizes[0][size])}
    return [
        place for size in sorted(common) for digest, place in _digests(sizes[1][size])
        if digest in seen
    ]  # fmt: skip


def same_pixels(first: Sequence[Readable], second: Sequence[Readable]) -> list[str]:
    """Images of `second`, as far as those are sets of `ssld pseudo-label`, that have the very
    pixels of one of `first`, however they are stored. What cannot be read is like no other."""
    places = {
        digest: source.location(i)
        for source in second
        if is_generated(Path(source.path))
        for i, digest in enumerate(pixel_sums(Path(source.path)))
        if digest is not None
    }
    if not places:
        return []
    with ThreadPoolExecutor(THREADS) as pool:
        found = [
            digest
            for source in first
            for digest in pool.map(partial(_pixels, source), range(len(source)))
        ]
    return sorted({places[digest] for digest in found if digest in places})


def _pixels(source: Readable, i: int) -> bytes | None:
    try:
        return measure(source.read(i))[1]
    except (OSError, Unreadable):
        return None


Places = list[tuple[Readable, int]]


def _by_size(sources: Sequence[Readable]) -> dict[int, Places]:
    """Images by the bytes of their files."""
    places: dict[int, Places] = {}
    for source in sources:
        for i in range(len(source)):
            size = source.size(i)
            if size is None:
                try:
                    size = os.path.getsize(source.location(i))
                except OSError:
                    continue
            places.setdefault(size, []).append((source, i))
    return places


def _digests(places: Places) -> Iterator[tuple[bytes, str]]:
    for source, i in places:
        try:
            yield hashlib.sha256(source.read(i)).digest(), source.location(i)
        except (OSError, Unreadable):
            continue


def flattering(shared: Sequence[str]) -> str:
    """What is said of image files that are in train and in val."""
    more = ", ..." if len(shared) > 2 else ""
    return (
        f"{len(shared)} images are in train and in val ({', '.join(shared[:2])}{more}): the "
        "evaluation will flatter"
    )


def write_preflight(
    folder: Path, reports: Mapping[str, Sequence[Report]], shared: Sequence[str] = ()
) -> list[str]:
    """Write `preflight.json` and `preflight.md`.

    Args:
        reports: of the sources, by what they are for: `train`, `generated` and `val`.
        shared: image files that are in both.

    Returns:
        the lines to print.

    Raises:
        InputError: they cannot be written.
    """
    content = {
        **{
            role: [{**report.as_dict(), "facts": report.facts()} for report in group]
            for role, group in reports.items()
        },
        IN_BOTH: list(shared),
    }
    write_atomically(folder / "preflight.json", json.dumps(content, indent=1) + "\n")
    lines, text = [], ["# Preflight"]
    for role, group in reports.items():
        for report in group:
            first, *rest = report.lines()
            lines += [f"{role}: {first}", *(f"  {line}" for line in rest)]
            text += ["", f"## {role}", "", "```", first, *rest, "```"]
    if shared:
        warning = f"warning: {flattering(shared)}"
        lines.append(warning)
        text += ["", f"**{warning}**"]
    write_atomically(folder / "preflight.md", "\n".join(text) + "\n")
    return lines
