"""A label set to another place and back: a data set of a hub, `hf://datasets/org/name`, any other
address of fsspec, `s3://` or `gs://` say, or a folder.

A hub gets all files in one commit. Elsewhere the index goes last, so that half a set is none.
Either way a card says what it is, and what comes is hashed before it counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import fsspec
from tqdm import tqdm

from ssld.common.errors import InputError, one_line
from ssld.common.files import locked, write_atomically
from ssld.common.streams import bar_output
from ssld.data.storage import absolute, list_files, read_all
from ssld.labels.card import README, card
from ssld.labels.format import (
    INDEX,
    KINDS,
    MANIFEST,
    Shard,
    ids_name,
    problem_of,
    problems,
    read_index,
    read_manifest,
)
from ssld.labels.samples import read_samples
from zoo.publish import hub
from zoo.release import sha256_of

PULLED = "pulled"
"""Folder in which an index waits for its shards."""
HUB = "hf://"
DATASETS = "hf://datasets/"
SMALL_BYTES = 2**28
"""More has no manifest or index."""
NAME_BYTES = 512
"""More has no line that names a sample, on average."""


def push(folder: Path, to: str) -> int:
    """Copy a finished, sound label set, and a card; returns how many files went.

    What is there already is not sent again, so a push that was stopped goes on.

    Raises:
        InputError: the set is not whole, `to` cannot be reached, or has something else.
    """
    manifest, index = read_manifest(folder), read_index(folder)
    for kind in KINDS:
        read_samples(folder, kind, manifest["samples"][kind]["sha256"])
    shards = [shard for kind in KINDS for shard in index[kind]]
    for problem in problems(folder, shards):
        raise InputError(problem)
    small = [MANIFEST, README, *map(ids_name, KINDS)]
    repo = _repo_of(to)
    readme = card(folder, manifest, to, pinnable=repo is not None)
    if repo is None:
        return _copy(folder, to, [*small, *(shard.file for shard in shards), INDEX], readme)
    return _commit(folder, repo, [*small, INDEX], shards, readme)


def _repo_of(address: str) -> str | None:
    """`org/name` or `org/name@revision` of a hub's address, None of others.

    Raises:
        InputError: it is on a hub, and no data set.
    """
    if not address.startswith(HUB):
        return None
    if not address.startswith(DATASETS):
        raise InputError(f"{address}: on a hub, labels are a data set: give {DATASETS}org/name")
    return address.removeprefix(DATASETS).rstrip("/")


def _commit(folder: Path, repo: str, small: list[str], shards: Sequence[Shard], readme: str) -> int:
    """All of it onto a hub, in one commit or none."""
    with tempfile.TemporaryDirectory(prefix="ssld-labels-") as temporary:
        staged = Path(temporary) / folder.resolve().name
        staged.mkdir()
        (staged / README).write_text(readme, encoding="utf-8")
        for name in (*small, *(shard.file for shard in shards)):
            if name != README:
                (staged / name).symlink_to((folder / name).resolve())
        sums = {name: sha256_of(staged / name) for name in small}
        sums |= {shard.file: shard.sha256 for shard in shards}
        done = hub.put(staged, sums, repo, repo_type="dataset", mark=MANIFEST, say=_say)
    return len(done.changed)


def _say(line: str) -> None:
    """Without the single files, which may be thousands."""
    if not line.startswith("  "):
        print(line)


def _copy(folder: Path, to: str, names: list[str], readme: str) -> int:
    """File by file, in this order."""

    def content(name: str) -> bytes:
        return readme.encode() if name == README else (folder / name).read_bytes()

    def size(name: str) -> int:
        return len(readme.encode()) if name == README else (folder / name).stat().st_size

    with _reaching(to):
        filesystem, root = fsspec.url_to_fs(absolute(to))
        there = list_files(absolute(to)) if filesystem.exists(root) else {}
        if there and _other(absolute(to).rstrip("/"), folder, there):
            raise InputError(f"{to} has something else: give another address, or remove that")
        filesystem.makedirs(root, exist_ok=True)
        todo = [name for name in names if there.get(name) != size(name)]
        for name in _shown("push", todo):
            filesystem.pipe_file(f"{root}/{name}", content(name))
    return len(todo)


def _other(place: str, folder: Path, there: dict[str, int | None]) -> bool:
    """Whether what is there is not this label set."""
    return (
        MANIFEST not in there or read_all(f"{place}/{MANIFEST}") != (folder / MANIFEST).read_bytes()
    )


def pull(source: str, out: Path) -> int:
    """Copy a label set into `out`, every shard compared with its sha256; returns how many came.

    What is there already is not fetched again, so a pull that was stopped goes on.

    Raises:
        InputError: there is none, it cannot be reached or is damaged, or `out` has something else.
    """
    place = absolute(str(local_copy(source)) if _repo_of(source) else source).rstrip("/")
    with _reaching(source), locked(out):
        manifest = read_all(f"{place}/{MANIFEST}")
        if (out / MANIFEST).is_file() and (out / MANIFEST).read_bytes() != manifest:
            raise InputError(f"out {out} has other labels than {source}: give another folder")
        with _staged(out, read_all(f"{place}/{INDEX}")) as index:
            write_atomically(out / MANIFEST, manifest)
            known = read_manifest(out)["samples"]
            for kind in KINDS:
                write_atomically(out / ids_name(kind), read_all(f"{place}/{ids_name(kind)}"))
                read_samples(out, kind, known[kind]["sha256"])
            todo = [x for kind in KINDS for x in index[kind] if problem_of(out, x)]
            for shard in _shown("pull", todo):
                write_atomically(out / shard.file, _fetched(place, shard))
    return len(todo)


def local_copy(address: str) -> Path:
    """The folder of a label set; that of a hub is brought into its client's cache, where what is
    there already is not fetched again.

    Raises:
        InputError: the hub has no whole label set there, or cannot be reached, or a file is not the
            one that the index names.
    """
    at = _repo_of(address)
    if at is None:
        return Path(address)
    repo, commit = hub.pinned(at, repo_type="dataset")

    def fetch(name: str, size: int, sha256: str | None = None) -> Path:
        return hub.file_of(repo, commit, name, sha256, size, repo_type="dataset")

    folder = fetch(MANIFEST, SMALL_BYTES).parent
    known = read_manifest(folder)["samples"]
    fetch(INDEX, SMALL_BYTES)
    index = read_index(folder)
    for kind in KINDS:
        fetch(ids_name(kind), NAME_BYTES * (known[kind]["count"] + 1))
        read_samples(folder, kind, known[kind]["sha256"])
    for shard in _shown("fetch", [shard for kind in KINDS for shard in index[kind]]):
        fetch(shard.file, shard.size, shard.sha256)
    return folder


@contextlib.contextmanager
def _staged(out: Path, content: bytes) -> Iterator[dict[str, list[Shard]]]:
    """The index, which gets its name when everything that it names is there."""
    (out / INDEX).unlink(missing_ok=True)
    waiting = out / PULLED
    waiting.mkdir(exist_ok=True)
    write_atomically(waiting / INDEX, content)
    yield read_index(waiting)
    (waiting / INDEX).replace(out / INDEX)
    waiting.rmdir()


def _fetched(place: str, shard: Shard) -> bytes:
    content = read_all(f"{place}/{shard.file}")
    if hashlib.sha256(content).hexdigest() != shard.sha256:
        raise InputError(
            f"{place}: {shard.file} is damaged (another sha256 than {INDEX} says): give the same "
            "command again, and push the labels anew if it says so again"
        )
    return content


def _shown(what: str, files: Sequence) -> tqdm:
    return tqdm(files, desc=what, unit="file", leave=False, **bar_output(lines=False))


@contextlib.contextmanager
def _reaching(place: str) -> Iterator[None]:
    """
    Raises:
        InputError: whatever a store says that cannot be reached, in a sentence.
    """
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{place}: no label set, or not all of one ({one_line(error)})") from error
    except (OSError, ImportError, ValueError) as error:
        raise InputError(f"{place} cannot be reached ({one_line(error)})") from error
