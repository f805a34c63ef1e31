"""Indexed images read again by workers, which notice one that is not what it was."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from ssld.common.errors import InputError, one_line
from ssld.curate.near_duplicates.sift import Features, features
from ssld.curate.sets.index import Index
from ssld.data.decode import Unreadable
from ssld.data.sources import read_address
from ssld.data.storage import Address

Read = tuple[Address, bytes]
"""Where an image is and the sha256 that it had when it was indexed."""


def reads(index: Index, rows: np.ndarray) -> list[Read]:
    """How to read rising `rows`, int64 [n]."""
    columns = index.at(rows, [*Address._fields, "sha256"]).to_pydict().values()
    return [(Address(*place), sha256) for *place, sha256 in zip(*columns, strict=True)]


def features_at(reads: Sequence[Read]) -> list[Features | str]:
    """Features of each image, or why there are none."""
    results: list[Features | str] = []
    for address, sha256 in reads:
        try:
            data = read_address(address)
            same = hashlib.sha256(data).digest() == sha256
            results.append(features(data) if same else "its bytes are others now")
        except (OSError, Unreadable) as error:
            results.append(one_line(error))
    return results


def refuse_changed(results: Sequence[object], reads: Sequence[Read]) -> None:
    """Raises InputError where there is a reason, a string, why an image is not what it was."""
    for value, (address, _) in zip(results, reads, strict=True):
        if isinstance(value, str):
            raise InputError(
                f"{address.path} is not what it was when it was indexed ({value}); give the same "
                "command again, which indexes it anew"
            )
