"""The samples of a label set by name and size, and what has changed since."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssld.common.files import reading, write_atomically
from ssld.data.source import Source
from ssld.labels.format import AGAIN, ids_name

ROWS = 65_536
"""Samples that are listed at once."""
Sample = tuple[str, int | None]


def listed(sources: Sequence[Source]) -> Iterator[Sample]:
    """Name and size in bytes, None where it is not known, of all samples in order."""
    for source in sources:
        for first in range(0, len(source), ROWS):
            rows = np.arange(first, min(first + ROWS, len(source)))
            yield from zip(*source.listed(rows), strict=True)


def digest(sources: Sequence[Source]) -> dict[str, Any]:
    """How many samples there are, and the sha256 of the lines that name them."""
    sha256, count = hashlib.sha256(), 0
    for line in _lines(listed(sources)):
        sha256.update(line)
        count += 1
    return {"count": count, "sha256": sha256.hexdigest()}


def _lines(samples: Iterable[Sample]) -> Iterator[bytes]:
    """`["NAME", SIZE]`, in ASCII."""
    return (json.dumps(sample).encode() + b"\n" for sample in samples)


def write_samples(folder: Path, kind: str, sources: Sequence[Source]) -> None:
    """Write the file that names the samples of a kind."""
    content = gzip.compress(b"".join(_lines(listed(sources))), mtime=0)
    write_atomically(folder / ids_name(kind), content)


def read_samples(folder: Path, kind: str, sha256: str) -> list[Sample]:
    """
    Args:
        sha256: of the lines, as the manifest has it.

    Raises:
        InputError: the file is gone or damaged.
    """
    file = folder / ids_name(kind)
    with reading(file, AGAIN, OSError):
        text = gzip.decompress(file.read_bytes())
        if hashlib.sha256(text).hexdigest() != sha256:
            raise ValueError("another sha256 than the manifest says")
        lines: list[Any] = [json.loads(line) for line in text.splitlines()]
        return [(str(name), size) for name, size in lines]


def changes(stored: Sequence[Sample], now: Sequence[Sample]) -> str | None:
    """What differs between the samples that were labeled and those that there are, in words."""
    before, after = [name for name, _ in stored], [name for name, _ in now]
    if before != after:
        for what, ids in (
            ("was added since", _missing(before, after)),
            ("is gone", _missing(after, before)),
        ):
            if ids:
                more = f" (and {len(ids) - 1:,} more)" if ids[1:] else ""
                return f"{ids[0]!r} {what}{more}"
        return "the same samples stand in another order: name the sources as they were built"
    for (name, size), (_, known) in zip(stored, now, strict=True):
        if None not in (size, known) and size != known:
            return f"{name!r} had {size:,} bytes and has {known:,}"
    return None


def _missing(known: Sequence[str], names: Sequence[str]) -> list[str]:
    """Those of `names` that are not known, or more often than they are."""
    return list((Counter(names) - Counter(known)).elements())
