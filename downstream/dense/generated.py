"""A set that `ssld pseudo-label` wrote: its annotations, and its images wherever they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssld.common.errors import InputError
from ssld.common.files import read_object
from ssld.data.manifest import ManifestSource
from zoo.release import sha256_of

MANIFEST = "pseudo_labels.json"
"""Written last: a folder that has it holds a whole set."""
IMAGES, ANNOTATIONS, MASKS = "images.parquet", "annotations.json", "masks"
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
    for name, digest in dict(manifest.get("files") or {}).items():
        try:
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
    return manifest, ManifestSource(str(folder / IMAGES))
