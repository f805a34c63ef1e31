"""A set that `ssld pseudo-label` wrote: its annotations, and its images wherever they lie."""

from __future__ import annotations

import os
from errno import ENOENT
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from downstream.dense.texts import shown
from ssld.common.errors import InputError
from ssld.common.files import read_object
from ssld.data.manifest import ManifestSource
from ssld.data.storage import is_remote
from zoo.release import sha256_of

MANIFEST = "pseudo_labels.json"
"""Written last: a folder that has it holds a whole set."""
IMAGES, ANNOTATIONS = "images.parquet", "annotations.json"
MASKS, TABLE = "masks", "classes.json"
PIXELS = "pixel_sha256"
"""Column of the former: of each image's pixels, as `ssld.curate.sets.index.measure` has it."""
AGAIN = "the command that wrote the folder makes it again"


def is_generated(folder: Path) -> bool:
    """Whether `ssld pseudo-label` wrote it."""
    return (folder / MANIFEST).is_file()


def open_generated(folder: Path, task: str) -> tuple[dict[str, Any], ManifestSource]:
    """The manifest of such a set, and its images.

    Args:
        task: detection or segmentation, which the set must be of.

    Raises:
        InputError: it is of the other task, or a file is missing or is not the one that was
            written.
    """
    manifest = read_object(folder / MANIFEST, AGAIN)
    if manifest.get("task") != task:
        raise InputError(
            f"{folder}: has pseudo-labels of {manifest.get('task')}, not of {task}; give another "
            "set"
        )
    files = manifest.get("files")
    wanted = {IMAGES, ANNOTATIONS} if task == "detection" else {IMAGES, TABLE}
    if not isinstance(files, dict) or files.keys() != wanted:
        raise InputError(
            f"{folder / MANIFEST}: files are {shown(files)}, not the sha256 of "
            f"{', '.join(sorted(wanted))}; {AGAIN}"
        )
    for name, digest in files.items():
        try:
            if not (folder / name).is_file():
                raise FileNotFoundError(ENOENT, "no such file")
            written = sha256_of(folder / name)
        except OSError as error:
            raise InputError(
                f"{folder / name} cannot be read ({error.strerror}); {AGAIN}"
            ) from error
        if written != digest:
            raise InputError(
                f"{folder / name} is damaged or was changed: its sha256 is not the one in "
                f"{MANIFEST}; {AGAIN}"
            )
    images = ManifestSource(str(folder / IMAGES))
    _require_images(images)
    return manifest, images


def pixel_sums(folder: Path) -> list[bytes | None]:
    """Of all images of a set that `open_generated` has opened; empty where it has none."""
    if PIXELS not in pq.read_schema(folder / IMAGES).names:
        return []
    sums = pq.read_table(folder / IMAGES, columns=[PIXELS])[PIXELS].to_pylist()
    return [x if isinstance(x, bytes) else None for x in sums]


def _require_images(images: ManifestSource) -> None:
    """
    Raises:
        InputError: the set is on another machine, or its images were moved.
    """
    there: dict[str, bool] = {}
    missing = []
    for i in range(len(images)):
        path = images.address(i).path
        if path not in there:
            there[path] = is_remote(path) or os.path.exists(path)
        if not there[path]:
            missing.append(images.location(i))
    if missing:
        raise InputError(
            f"{images.path}: {len(missing)} of its {len(images)} images are not where they were, "
            f"{missing[0]} for one: bring them back, or label them where they are now"
        )
