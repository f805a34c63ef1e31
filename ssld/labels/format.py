"""The files of a label set (docs/labels.md), without torch.

manifest.json         what decides the labels: teacher, views, augmentation, samples, versions
index.json            every shard with its sha256 and the digests of a few views; written last
KIND-ids.jsonl.gz     name and size of each sample, in the order of the shards' rows
KIND-000000.safetensors
    classes           uint16 (int32 above 65,536 classes) [samples, views, k], likeliest first
    log_probs         float16 [samples, views, k]; NaN where the image could not be read
    tail              float16 [samples, views], log of the probability of all other classes

KIND is `train`, or `val` of the held-out images, which have one view. A shard is written once, in
one step, and never changed. While labels are built, KIND-000000.json says that its shard is done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from ssld.common.errors import InputError
from ssld.common.files import LOCK, read_object, reading, write_atomically
from ssld.common.paths import check_inputs
from zoo.release import sha256_of

FORMAT, VERSION = "ssld-labels", 1
MANIFEST, INDEX = "manifest.json", "index.json"
KINDS = ("train", "val")
BEGUN = tuple(f"{kind}-ids.jsonl.gz" for kind in KINDS)
"""Files that are there before the manifest."""
NEEDED = (
    *("views", "top_k", "classes", "label_names", "temperature", "seed", "size", "augment"),
    *("teacher_view", "eval_view", "teacher_sha256", "teachers", "described", "samples"),
    "versions",
)
"""What a manifest has."""
SHARD_VIEWS = 65_536
"""Views in a shard: what a kill costs at most."""
UNREADABLE = "unreadable"
"""Instead of a digest."""
AGAIN = "remove the folder, then pull the labels or build them anew"
Header = dict[str, Any]


@dataclass(frozen=True)
class Shard:
    """A line of the index."""

    file: str
    first: int
    """Number of its first sample among those of its kind."""
    samples: int
    size: int
    """Bytes."""
    sha256: str
    unreadable: int
    """Views without a label."""
    fingerprints: list[list[Any]]
    """[sample, view, digest of the pixels] of a few views; the sample is counted as `first` is."""


def check(config: Any) -> None:
    """Of the settings of a build, before torch is imported.

    Raises:
        InputError: a source or weights are not there, or `out` holds something else.
    """
    check_inputs(config)
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise InputError(f"out {out} is a file: give a folder")
    if out.is_dir() and not (out / MANIFEST).exists():
        # A build that was killed at its very start has left these.
        known = (LOCK, *BEGUN, *(f".{name}.tmp" for name in (*BEGUN, MANIFEST)))
        if any(path.name not in known for path in out.iterdir()):
            raise InputError(f"out {out} is not empty and no label set: give another folder")


def shard_name(kind: str, number: int) -> str:
    """Of a file, without its ending."""
    return f"{kind}-{number:06d}"


def ids_name(kind: str) -> str:
    """Of the file that names the samples."""
    return f"{kind}-ids.jsonl.gz"


def samples_per_shard(views: int) -> int:
    """So that a shard has about `SHARD_VIEWS`."""
    return max(1, SHARD_VIEWS // views)


def number_type(classes: int) -> type[np.generic]:
    """In which class numbers are stored."""
    return np.uint16 if classes <= 2**16 else np.int32


def bytes_per_view(top_k: int, classes: int) -> int:
    """Without the index and the samples' names, which add a byte or two."""
    return top_k * (np.dtype(number_type(classes)).itemsize + 2) + 2


def digest_of(pixels: np.ndarray) -> str:
    """Of a view, uint8 [size, size, 3]: blake2b of its bytes, 16 of them in hex."""
    return hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest()


def write_shard(
    folder: Path,
    kind: str,
    number: int,
    first: int,
    tensors: dict[str, np.ndarray],
    fingerprints: list[list[Any]],
) -> Shard:
    """Write a shard, and then that it is done.

    Args:
        tensors: as the header of this file says.

    Raises:
        InputError: it cannot be written.
    """
    name, content = shard_name(kind, number), save(tensors)
    write_atomically(folder / f"{name}.safetensors", content)
    shard = Shard(
        file=f"{name}.safetensors",
        first=first,
        samples=len(tensors["tail"]),
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        unreadable=int(np.isnan(tensors["tail"]).sum()),
        fingerprints=fingerprints,
    )
    write_atomically(folder / f"{name}.json", json.dumps(asdict(shard)))
    return shard


def done(folder: Path, kind: str, number: int, samples: range) -> Shard | None:
    """What was noted of the shard of these samples, where it is written.

    Raises:
        InputError: the note is damaged.
    """
    note = folder / f"{shard_name(kind, number)}.json"
    if not note.is_file():
        return None
    with reading(note, "remove it, and the same command makes its shard again"):
        shard = Shard(**read_object(note, "remove it"))
    if (shard.first, shard.samples) != (samples.start, len(samples)):
        return None  # of an ssld with shards of another size
    file = folder / shard.file
    return shard if file.is_file() and file.stat().st_size == shard.size else None


def write_index(folder: Path, shards: dict[str, list[Shard]]) -> None:
    """The last thing that is written; then the notes of single shards go."""
    content = {kind: [asdict(shard) for shard in known] for kind, known in shards.items()}
    write_atomically(folder / INDEX, json.dumps(content, indent=1) + "\n")
    for known in shards.values():
        for shard in known:
            (folder / shard.file).with_suffix(".json").unlink(missing_ok=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """
    Raises:
        InputError: it is no label set, damaged, or of a later version.
    """
    try:
        manifest = read_object(folder / MANIFEST, AGAIN)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"labels {folder}: no label set (it has no {MANIFEST}); `ssld labels build` makes one"
        ) from error
    if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise InputError(
            f"labels {folder}: {MANIFEST} is of {manifest.get('format')} "
            f"{manifest.get('version')}, this ssld reads {FORMAT} {VERSION}"
        )
    lacking = [key for key in NEEDED if key not in manifest]
    if lacking:
        raise InputError(f"{folder / MANIFEST} is damaged (it has no {lacking[0]}); {AGAIN}")
    return manifest


def read_index(folder: Path) -> dict[str, list[Shard]]:
    """The shards of each kind, in order.

    Raises:
        InputError: the build has not finished, or the index is damaged.
    """
    try:
        content = read_object(folder / INDEX, AGAIN)
    except FileNotFoundError as error:
        raise InputError(
            f"labels {folder}: they are not finished (there is no {INDEX}): give the command of "
            "`ssld labels build` or `ssld labels pull` again, it goes on"
        ) from error
    with reading(folder / INDEX, AGAIN):
        shards = {kind: [Shard(**line) for line in content[kind]] for kind in KINDS}
        for kind, known in shards.items():
            if [x.file for x in known] != [
                f"{shard_name(kind, i)}.safetensors" for i in range(len(known))
            ]:
                raise ValueError(f"it names other files than shards of {kind}")
        return shards


def problems(
    folder: Path, shards: Iterable[Shard], *, contents: Container[str] | None = None
) -> Iterator[str]:
    """What is wrong with the files of shards, one after the other.

    Args:
        contents: names of the files that are read, and their sha256 compared; by default all. Of
            the others the size is looked at.
    """
    for shard in shards:
        problem = problem_of(folder, shard, read=contents is None or shard.file in contents)
        if problem:
            yield problem


def problem_of(folder: Path, shard: Shard, *, read: bool = True) -> str | None:
    """What is wrong with the file of a shard, None for a whole one; unless it is read, by its size
    alone."""
    file = folder / shard.file
    try:
        size = file.stat().st_size
        if size != shard.size:
            return f"{file} has {size:,} bytes, {INDEX} says {shard.size:,}: {AGAIN}"
        if read and sha256_of(file) != shard.sha256:
            return f"{file} is damaged (another sha256 than {INDEX} says): {AGAIN}"
    except OSError as error:
        return f"{file}: {error.strerror}; the label set is not whole: {AGAIN}"
    return None


def open_shard(file: Path) -> dict[str, np.ndarray]:
    """Its tensors, mapped: nothing is read before it is asked for.

    Raises:
        InputError: it is gone or damaged.
    """
    types = {"U16": np.uint16, "I32": np.int32, "F16": np.float16}
    with reading(file, AGAIN, OSError), file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header: Header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        # A view of the map, as rows of np.memmap itself cost three times as much.
        return {
            name: np.asarray(
                np.memmap(
                    file,
                    types[entry["dtype"]],
                    "r",
                    8 + length + entry["data_offsets"][0],
                    tuple(entry["shape"]),
                )
            )
            for name, entry in header.items()
        }


def in_shards(samples: int, per_shard: int) -> Sequence[range]:
    """The samples of each shard."""
    return [range(x, min(x + per_shard, samples)) for x in range(0, samples, per_shard)]
