"""pseudo_labels.json, what a set was made of and what came of it, and the table of its images: the
same bytes for the same images, network and settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from downstream.dense.generated import IMAGES, MANIFEST, MASKS, PIXELS, open_generated
from downstream.pseudo_label.config import STATE, WRITTEN, PseudoLabelConfig
from downstream.pseudo_label.images import Chosen, Index
from downstream.pseudo_label.labeled import Labeled
from downstream.pseudo_label.shards import Shards
from downstream.pseudo_label.teacher import Description
from downstream.pseudo_label.thresholds import Threshold
from ssld.common.errors import InputError
from ssld.common.files import read_object, write_atomically
from ssld.common.packages import versions
from ssld.curate.context import key
from ssld.curate.sets.images import ImageSet
from zoo.release import sha256_of

FORMAT = 1
"""Of the folder."""
NOTED = {
    "settings": "other settings",
    "views": "other views of an image",
    "teacher": "another network",
    "images": "other images",
    "labeled": "another labeled set",
    "val": "another held-out set",
}
"""What is said of each part of the state that differs."""


@dataclass(frozen=True)
class Made:
    """What a set is made with."""

    config: PseudoLabelConfig
    description: Description
    views: dict[str, Any]
    """How the network sees an image: its settings under `test`."""


@dataclass(frozen=True)
class Annotated:
    """All that the files of a set are written from."""

    out: Path
    made: Made
    indexes: dict[str, Index]
    """Of the images, and of the labeled and the held-out set where there are any."""
    chosen: Chosen
    labeled: Labeled | None
    found: Shards

    @property
    def images(self) -> Index:
        return self.indexes["images"]

    @property
    def class_names(self) -> list[str]:
        return self.made.description.class_names


def state_of(made: Made, sets: dict[str, ImageSet], labeled: Labeled | None) -> dict[str, Any]:
    """All that decides the set: what a resumed command compares."""
    prints = {
        name: key(*(images.fingerprint(shard) for shard in images.shards))
        for name, images in sets.items()
    }
    state = {
        "format": FORMAT,
        "settings": made.config.deciding,
        "views": made.views,
        "teacher": made.description.sha256,
        "images": prints["images"],
        "labeled": labeled and [prints["labeled"], *labeled.facts],
        "val": prints.get("val"),
    }
    return json.loads(json.dumps(state))  # as it is read again


def compare_state(out: Path, state: dict[str, Any], overwrite: bool) -> bool:
    """Whether the folder holds work of the same state.

    Raises:
        InputError: it holds that of another one, and is not to be overwritten.
    """
    if not (out / STATE).is_file():
        return False
    try:
        before = read_object(out / STATE, "give --overwrite, or another folder")
    except InputError:
        if overwrite:
            return False
        raise
    differing = [said for name, said in NOTED.items() if before.get(name) != state[name]]
    if differing and not overwrite:
        changed = _changed(before, state)
        raise InputError(
            f"out {out} holds pseudo-labels of {', '.join(differing)}{changed}: give the same "
            "command to go on, --overwrite to replace them, or another folder"
        )
    return not differing and before.get("format") == FORMAT


def _changed(before: dict[str, Any], state: dict[str, Any]) -> str:
    """` (threshold: 0.5, now count)`, of settings and views."""
    parts = []
    for group in ("settings", "views"):
        old, new = before.get(group), state[group]
        if isinstance(old, dict):
            parts += [f"{name}: {old.get(name)}, now {x}" for name, x in new.items()
                      if old.get(name) != x]  # fmt: skip
    return f" ({'; '.join(parts)})" if parts else ""


def begin(out: Path, state: dict[str, Any]) -> None:
    """Remove a set that was made of something else, and note what this one is made of."""
    stale = [out / name for name in (MANIFEST, *WRITTEN) if (out / name).is_file()]
    for path in stale:
        if path.name not in (STATE, "log.jsonl", ".lock"):
            path.unlink(missing_ok=True)
    for path in sorted((out / "masks").rglob("*.png")):
        path.unlink()
    write_atomically(out / STATE, json.dumps(state, indent=1) + "\n")


def is_complete(out: Path, task: str) -> bool:
    """Whether the set is there, each file with the sha256 that it was written with."""
    if not (out / MANIFEST).is_file():
        return False
    try:
        open_generated(out, task)
        return _has_masks(out)
    except (OSError, InputError, pa.ArrowException):
        return False


def _has_masks(out: Path) -> bool:
    """Whether the masks are those that were written, if there are to be any."""
    if "mask" not in pq.read_schema(out / IMAGES).names:
        return True
    table = pq.read_table(out / IMAGES, columns=["mask", "mask_sha256"])
    names, digests = (table[name].to_pylist() for name in table.column_names)
    files = [out / MASKS / name for name in names]
    return all(x.is_file() and sha256_of(x) == y for x, y in zip(files, digests, strict=True))


def write_images(done: Annotated, masks: dict[str, str] | None = None) -> None:
    """Write images.parquet: where the bytes of each image lie, so that none is copied.

    Args:
        masks: of a segmenter, the file of each and its sha256.
    """
    images, rows = done.images, done.chosen.rows
    addresses = [images.images.address(row) for row in rows]
    columns = {
        "sample_id": pa.array([images.sample_id(row) for row in rows], pa.string()),
        "path": pa.array([x.path for x in addresses], pa.string()),
        "offset": pa.array([x.offset for x in addresses], pa.int64()),
        "size": pa.array([x.size for x in addresses], pa.int64()),
        "width": pa.array([images.size[row][1] for row in rows], pa.int32()),
        "height": pa.array([images.size[row][0] for row in rows], pa.int32()),
        PIXELS: pa.array([images.pixel_sum(row) for row in rows], pa.binary()),
    }
    if masks is not None:
        columns["mask"] = pa.array(list(masks), pa.string())
        columns["mask_sha256"] = pa.array(list(masks.values()), pa.string())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    write_atomically(done.out / IMAGES, sink.getvalue().to_pybytes())


def write_manifest(
    done: Annotated,
    thresholds: Sequence[Threshold] | None,
    facts: dict[str, Any],
    files: Sequence[str],
) -> None:
    """Write pseudo_labels.json, the last file of a set.

    Args:
        thresholds: of a detector, by class.
        facts: counts, warnings: what came of it.
        files: of the set, whose sha256 is noted.
    """
    made, chosen, labeled = done.made, done.chosen, done.labeled
    counts = labeled.counts if labeled else [None] * len(done.class_names)
    manifest = {
        "format": FORMAT,
        "task": made.description.task,
        "finds": made.description.finds,
        "teacher": made.description.facts,
        "settings": {**made.config.deciding, "test": made.views},
        "versions": versions() | {"pyarrow": pa.__version__},
        "sources": {name: _source(index) for name, index in done.indexes.items()},
        "images": {
            "annotated": len(chosen.rows),
            "unreadable": len(chosen.unreadable),
            "left out, with human annotations": len(chosen.labeled),
            "left out, the same picture as another": len(chosen.twice),
        },
        "labeled": {"images": labeled.images, "sets": labeled.paths} if labeled else None,
        "classes": [
            {"name": name, "labeled": count, **(asdict(thresholds[k]) if thresholds else {})}
            for k, (name, count) in enumerate(zip(done.class_names, counts, strict=True))
        ],
        **facts,
        "files": {name: sha256_of(done.out / name) for name in files},
    }
    write_atomically(done.out / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def _source(index: Index) -> dict[str, Any]:
    return {
        "paths": [source.path for source in index.images.sources],
        "images": len(index),
        "sha256": index.digest,
    }
