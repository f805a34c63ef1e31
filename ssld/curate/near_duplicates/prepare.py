"""The reference set made ready to be compared with: before the first image of the pool."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssld.common.errors import InputError
from ssld.common.files import cannot_write
from ssld.curate.context import Work, batched, key
from ssld.curate.near_duplicates.matching import RULE_VERSION
from ssld.curate.near_duplicates.reading import features_at, reads, refuse_changed
from ssld.curate.near_duplicates.reference_set import ReferenceSet
from ssld.curate.near_duplicates.sift import Features
from ssld.curate.sets.index import Index


@dataclass(frozen=True)
class Prepared:
    """The reference set, ready to be compared with."""

    folder: Path
    key: str
    rows: np.ndarray
    """int64: row of the set of each of its images, the unreadable left out."""
    structureless: np.ndarray
    """bool: too few descriptors to be verified."""


def prepare(work: Work, reference: Index, scorer_key: str | None, views: list[Path]) -> Prepared:
    """Features and, with a teacher, embeddings of the readable images of the reference set.

    Args:
        views: what `embed_reference_set` wrote; none without a teacher.

    Raises:
        InputError: none can be read.
    """
    rows = np.flatnonzero(reference.readable())
    if not len(rows):
        raise InputError(
            "protected: none of the images can be read, so that nothing would be protected; give "
            "the images that you evaluate on"
        )
    name = key("protected", RULE_VERSION, reference.keys, scorer_key)
    folder = work.out / "work" / f"protected-{name}"
    if work.main and not folder.is_dir():
        temporary = folder.with_name(f".{folder.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        features = _features(work, reference, rows)
        whole = [np.load(path, mmap_mode="r") for path in views]
        embeddings = np.concatenate(whole)[rows] if whole else None  # [n, views, d]
        try:
            ReferenceSet.build(temporary, features, embeddings)
            temporary.replace(folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise cannot_write(folder, error) from error
    work.processes.wait()
    return Prepared(folder, name, rows, np.array(ReferenceSet(folder).structureless))


def _features(work: Work, reference: Index, rows: np.ndarray) -> Iterator[Features]:
    items = batched(reads(reference, rows))
    with work.bar("features protected", len(rows)) as bar:
        for item, results in zip(items, work.ordered(features_at, items), strict=True):
            refuse_changed(results, item)
            for result in results:
                assert not isinstance(result, str), result  # refused above
                yield result
            bar.update(len(results))
