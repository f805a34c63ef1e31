"""Exact duplicates: images of two sets, or of one, that are the very same file or decoded pixels.

Candidates are joined by the first 8 bytes of a hash, plain integers that numpy sorts and searches
by the million, and compared by all 32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from ssld.curate.sets.index import Index, heads

HASHES = {"sha256": "bytes", "pixel_sha256": "pixels"}
"""Column of the index -> what it says is equal."""


@functools.lru_cache(4)  # of finished indexes, which several stages ask about
def duplicates(index: Index, other: Index) -> dict[int, tuple[int, str]]:
    """Row of `index` -> (row of `other`, bytes or pixels), for images that are in both."""
    twins: dict[int, tuple[int, str]] = {}
    for name, what in HASHES.items():
        hashes = other.column(name)
        known = heads(hashes)
        order = np.argsort(known, kind="stable")
        known = known[order]
        for shard, table in index.read([name]):
            mine = heads(table[name])
            at = np.minimum(np.searchsorted(known, mine), len(known) - 1)  # [rows of the shard]
            for i in np.flatnonzero((known[at] == mine) & (mine != 0)).tolist():
                row = int(order[at[i]])
                if hashes[row].as_py() == table[name][i].as_py():
                    twins.setdefault(shard.first + i, (row, what))
    return dict(sorted(twins.items()))


def copies(index: Index) -> dict[int, int]:
    """Row -> row of the same picture that stands for it, for all but that one of each group.

    It is the one with the least sha256, of equal files the one with the least sample id, so that
    neither the order of files nor where shards end decides.
    """
    pixels = index.tie_breakers("pixel_sha256")
    _, group, size = np.unique(pixels, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero((size[group] > 1) & (pixels != 0))
    columns = index.at(repeated, ["pixel_sha256", "sha256", "sample_id"]).to_pydict().values()
    groups: dict[bytes, list[tuple[bytes, str, int]]] = {}
    for row, picture, *rank in zip(repeated.tolist(), *columns, strict=True):
        groups.setdefault(picture, []).append((*rank, row))
    stands_for = {}
    for members in groups.values():
        first, *others = sorted(members)
        stands_for |= {row: first[2] for _, _, row in others}
    return stands_for


def with_keys(index: Index, keys: set[str], key_of: Callable[[str], str]) -> list[int]:
    """Rows whose sample id has one of `keys`."""
    return [
        shard.first + i
        for shard, table in index.read(["sample_id"])
        for i, sample_id in enumerate(table["sample_id"].to_pylist())
        if key_of(sample_id) in keys
    ]
