"""A label set to another place and back: any address of fsspec, `s3://`, `gs://`, `hf://datasets/`,
or a folder. The index goes last, so that half a set is none; what comes is hashed before it counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import fsspec
from tqdm import tqdm

from ssld.common.errors import InputError, one_line
from ssld.common.files import locked, write_atomically
from ssld.common.streams import is_terminal
from ssld.data.storage import absolute, list_files, read_all
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

PULLED = "pulled"
"""Folder in which an index waits for its shards."""


def push(folder: Path, to: str) -> int:
    """Copy a finished, sound label set; returns how many files went.

    What is there in its size already is not sent again, so a push that was stopped goes on.

    Raises:
        InputError: the set is not whole, `to` cannot be reached, or has something else.
    """
    manifest, index = read_manifest(folder), read_index(folder)
    for kind in KINDS:
        read_samples(folder, kind, manifest["samples"][kind]["sha256"])
    shards = [shard for kind in KINDS for shard in index[kind]]
    for problem in problems(folder, shards):
        raise InputError(problem)
    names = [MANIFEST, *map(ids_name, KINDS), *(shard.file for shard in shards), INDEX]
    with _reaching(to):
        filesystem, root = fsspec.url_to_fs(absolute(to))
        there = list_files(absolute(to)) if filesystem.exists(root) else {}
        if there and _other(absolute(to).rstrip("/"), folder, there):
            raise InputError(f"{to} has something else: give another address, or remove that")
        filesystem.makedirs(root, exist_ok=True)
        todo = [x for x in names if there.get(x) != (folder / x).stat().st_size]
        for name in _shown("push", todo):
            filesystem.pipe_file(f"{root}/{name}", (folder / name).read_bytes())
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
    place = absolute(source).rstrip("/")
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
    return tqdm(files, desc=what, unit="file", disable=not is_terminal(sys.stderr), leave=False)


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
