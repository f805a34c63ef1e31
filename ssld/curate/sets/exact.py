"""Which images of two sets are the very same: file, or decoded pixels."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from ssld.curate.sets.index import Index, heads

HASHES = {"sha256": "bytes", "pixel_sha256": "pixels"}
"""Column of the index -> what it says is equal."""


@functools.lru_cache(4)  # of finished indexes, which several stages ask about
def same(index: Index, other: Index) -> dict[int, tuple[int, str]]:
    """Row of `index` -> (row of `other`, bytes or pixels), for images that are in both."""
    found: dict[int, tuple[int, str]] = {}
    for name, what in HASHES.items():
        known = other.column(name)
        ties = heads(known)
        order = np.argsort(ties, kind="stable")
        ties = ties[order]
        for shard, table in index.read([name]):
            mine = heads(table[name])
            at = np.minimum(np.searchsorted(ties, mine), len(ties) - 1)
            for i in np.flatnonzero((ties[at] == mine) & (mine != 0)).tolist():
                row = int(order[at[i]])
                if known[row].as_py() == table[name][i].as_py():
                    found.setdefault(shard.first + i, (row, what))
    return dict(sorted(found.items()))


def copies(index: Index) -> dict[int, int]:
    """Row -> row of the same picture that stands for it, for all but that one of each group.

    It is the one with the least sha256, of equal files the one with the least sample id, so that
    neither the order of files nor where shards end decides.
    """
    pixels = index.ties("pixel_sha256")
    _, group, size = np.unique(pixels, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero((size[group] > 1) & (pixels != 0))
    values = _at(index, repeated, ["pixel_sha256", "sha256", "sample_id"])
    groups: dict[bytes, list[tuple[bytes, str, int]]] = {}
    for row, (picture, sha256, sample_id) in zip(repeated.tolist(), values, strict=True):
        groups.setdefault(picture, []).append((sha256, sample_id, row))
    found = {}
    for members in groups.values():
        first, *others = sorted(members)
        found |= {row: first[2] for _, _, row in others}
    return found


def with_keys(index: Index, keys: set[str], key_of: Callable[[str], str]) -> list[int]:
    """Rows whose sample id has one of `keys`."""
    return [
        shard.first + i
        for shard, table in index.read(["sample_id"])
        for i, sample_id in enumerate(table["sample_id"].to_pylist())
        if key_of(sample_id) in keys
    ]


def _at(index: Index, rows: np.ndarray, columns: list[str]) -> list[tuple]:
    """The values of `columns` at rising rows."""
    found: list[tuple] = []
    for shard, here in index.images.by_shard(rows):
        part = index.table(shard, columns).take(pa.array(here - shard.first))
        found += zip(*(part[name].to_pylist() for name in columns), strict=True)
    return found


def locations(index: Index, rows: np.ndarray) -> dict[int, str]:
    """Row -> location, for sorted rows."""
    found = _at(index, rows, ["location"])
    return dict(zip(rows.tolist(), (name for (name,) in found), strict=True))
