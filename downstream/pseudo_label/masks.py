"""A set of generated masks, from what a segmenter said: PNG of class numbers and a class table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from downstream.dense.generated import MASKS, TABLE
from downstream.pseudo_label.images import Chosen, Index, relative_names
from downstream.pseudo_label.labeled import Labeled
from downstream.pseudo_label.shards import Shards, Work
from downstream.pseudo_label.teacher import BINS
from downstream.segmentation.data.class_table import IGNORE
from ssld.common.errors import InputError
from ssld.common.files import write_atomically

VANISHED = 0.1
"""Share of a class's share of the labeled pixels, below which it is noticed."""


@dataclass(frozen=True)
class Pixels:
    """Of all images."""

    counts: np.ndarray
    """int64 [classes + 1]: of each class, and ignored ones last."""
    histogram: np.ndarray
    """int64 [classes, BINS]: of each class's probabilities."""
    near: dict[int, float]
    """Of each image the share of pixels that are near the threshold."""


def count_pixels(found: Shards) -> Pixels:
    """What the predictions add up to."""
    counts, histogram, near = 0, 0, {}
    for table in found.tables():
        if len(table):
            counts = counts + _sum(table["counts"])
            histogram = histogram + _sum(table["histogram"])
            near |= zip(table["row"].to_pylist(), table["near"].to_pylist(), strict=True)
    return Pixels(np.asarray(counts), np.reshape(histogram, (-1, BINS)), near)


def _sum(column: pa.ChunkedArray) -> np.ndarray:
    """Of a column of lists of one length, int64 [length]."""
    values = column.combine_chunks().flatten().to_numpy()
    return values.reshape(len(column), -1).sum(0)


def warnings(
    counts: np.ndarray, labeled: Labeled | None, names: Sequence[str], least: float
) -> list[str]:
    """What a user should look at.

    Args:
        counts: of `Pixels`.

    Raises:
        InputError: no pixel has a class, or all have one and the labeled set has others.
    """
    known = counts[:-1]
    if not known.sum():
        raise InputError(
            f"no pixel of any image has a class with a probability of {least:g} or more: lower "
            "--pixel_threshold, or give a network that has learned"
        )
    expected = np.zeros(len(names)) if labeled is None else np.array(labeled.counts, np.float64)
    present = [name for name, count in zip(names, known.tolist(), strict=True) if count]
    if len(present) == 1 and (expected > 0).sum() > 1:
        raise InputError(
            f"all pseudo-labels are of one class, {present[0]!r}, and the labeled set has "
            f"{(expected > 0).sum()}: nothing can be learned from them; lower --pixel_threshold, "
            "or give a network that has learned"
        )
    expected = expected / max(expected.sum(), 1)
    shares = known / known.sum()
    lines = []
    for name, share, wanted in zip(names, shares.tolist(), expected.tolist(), strict=True):
        if wanted and not share:
            lines.append(
                f"class {name!r} has vanished: {wanted:.2%} of the labeled set's pixels are of "
                "it, none of the pseudo-labels'"
            )
        elif wanted and share < VANISHED * wanted:
            lines.append(
                f"class {name!r} has nearly vanished: {share:.3%} of the pixels, {wanted:.2%} in "
                "the labeled set"
            )
    return lines


def mask_names(images: Index, chosen: Chosen) -> list[str]:
    """A file below masks/ for each image."""
    return [f"{name}.png" for name in relative_names(map(images.sample_id, chosen.rows))]


def digests(found: Shards) -> list[str]:
    """sha256 of each mask, in the order of the images."""
    columns = (table["mask"].to_pylist() for table in found.tables())
    return [hashlib.sha256(data).hexdigest() for column in columns for data in column]


def write_masks(work: Work, found: Shards, chosen: Chosen, names: Sequence[str]) -> None:
    """Write this process's share of the masks."""
    file = dict(zip(chosen.rows, names, strict=True))
    rank, world = work.processes.rank, work.processes.world_size
    for number in range(rank, len(found.keys), world):
        for row in found.table(number).select(["row", "mask"]).to_pylist():
            path = work.out / MASKS / file[row["row"]]
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, row["mask"])


def write_table(out: Path, names: Sequence[str], palette: np.ndarray) -> None:
    """Write classes.json.

    Args:
        palette: uint8 [classes, 3].
    """
    rows = [{"id": i, "name": name, "colour": palette[i].tolist()} for i, name in enumerate(names)]
    table = {"classes": rows, "ignore": [IGNORE]}
    write_atomically(out / TABLE, json.dumps(table, indent=1) + "\n")
