"""A release: a folder that plain timm loads, and `ssld.json` that says what is in it.

    model.safetensors  config.json      what `timm.create_model("local-dir:FOLDER")` reads
    README.md          .eval_results/   the card, and its numbers for leaderboards
    *.png                               curves
    ssld.json                           sha256 of every other file, and where it all comes from

The same layout on a hub, in a local folder and in a bundle. The hub's own client accepts a file of
the right size with wrong content, so `verify` reads every byte.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from zoo.described import read_config
from zoo.errors import InputError, one_line

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "ssld.json"
FORMAT = 1
NAME_CHARACTERS = 255
HUB_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
SHA256 = re.compile(r"[0-9a-f]{64}")
NOT_OURS = ("tag", "origin_url", "paper_ids", "paper_name", "notes", "description")
"""Entries of timm's pretrained_cfg that speak of timm's own weights of the architecture; besides
them `license` does."""


def sha256_of(file: Path) -> str:
    """Hex digest of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def names_in(folder: Path) -> set[str]:
    """All files and links in a folder, at any depth, but not the folders themselves."""
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in paths}


def seal(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write `ssld.json`: `facts`, and sha256 and bytes of every other file of `folder`."""
    files = {
        path.relative_to(folder).as_posix(): {
            "sha256": sha256_of(path),
            "bytes": path.stat().st_size,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }
    content = {"format": FORMAT, **facts, "files": files}
    (folder / MANIFEST).write_text(
        json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def save_weights(
    weights: Mapping[str, Tensor], file: Path, metadata: dict[str, str] | None = None
) -> None:
    """Write safetensors: the same tensors, the same bytes, if metadata has one entry at most
    (safetensors writes several in any order).

    Raises:
        OSError: as for any other file; safetensors' own writer raises an error of its own, and lets
            nobody else read the file.
    """
    from safetensors.torch import save  # imports torch, which a sha256 does not need

    file.write_bytes(save(dict(weights), metadata))


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `ssld.json` says.

    Raises:
        InputError: there is none, it is no such file, or it names files outside of the folder.
    """
    path = folder / MANIFEST
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no file; fetch or publish the folder anew")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = manifest["files"]
        sums = [(str(name), entry["sha256"], entry["bytes"]) for name, entry in files.items()]
        if not all(SHA256.fullmatch(digest) and type(size) is int for _, digest, size in sums):
            raise ValueError("a sha256 or a size is none")
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} has no {MANIFEST}: give a folder that `ssld zoo` published, pulled or "
            "converted"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged ({error}); fetch or publish the folder anew"
        ) from error
    if manifest.get("format") != FORMAT:
        raise InputError(
            f"{path} has format {manifest.get('format')!r}, this version of ssld reads {FORMAT}; "
            "install the version that wrote it"
        )
    names = {name for name, _, _ in sums}
    for name in sorted(names):
        above = {str(parent) for parent in PurePosixPath(name).parents}
        plain = name.isprintable() and "\\" not in name and len(name) <= NAME_CHARACTERS
        if not plain or {"", "..", "."} & set(name.split("/")) or (names | {MANIFEST}) & above:
            raise InputError(
                f"{path} names the file {name[:NAME_CHARACTERS]!r}, which is not inside the folder "
                "or cannot be; do not use this release"
            )
    return manifest


def copy(source: Path, folder: Path) -> None:
    """Copy the files that the release at `source` lists, and `ssld.json`, into `folder`.

    Raises:
        InputError: one is missing.
    """
    for name in (*read_manifest(source)["files"], MANIFEST):
        if not (source / name).is_file():
            raise InputError(f"{source}: {name} is missing; fetch or publish the folder anew")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, folder / name)


def verify(folder: Path) -> dict[str, Any]:
    """Check size and sha256 of every file that `ssld.json` lists; returns what it says.

    Raises:
        InputError: naming the first file that is missing, a link, different or not listed; or
            config.json says what no network can have.
    """
    manifest = read_manifest(folder)
    for name in ("model.safetensors", "config.json"):
        if name not in manifest["files"]:
            raise InputError(f"{folder / MANIFEST} does not list {name}: this is no release")
    for name in sorted(names_in(folder) - manifest["files"].keys() - {MANIFEST}):
        if not name.startswith(".git"):  # of a clone
            raise InputError(f"{folder} holds {name}, which {MANIFEST} does not list; move it away")
    for name, entry in manifest["files"].items():
        file = folder / name
        if file.is_symlink() or not file.is_file():
            raise InputError(f"{folder}: {name} is missing; fetch or publish the folder anew")
        if file.stat().st_size != entry["bytes"]:
            raise InputError(
                f"{folder}: {name} has {file.stat().st_size} bytes instead of {entry['bytes']}; "
                "fetch or publish the folder anew"
            )
        actual = sha256_of(file)
        if actual != entry["sha256"]:
            raise InputError(
                f"{folder}: {name} was changed: its sha256 is {actual} instead of "
                f"{entry['sha256']}; fetch or publish the folder anew"
            )
    read_config(folder / "config.json")
    return manifest


def sums_of(folder: Path) -> dict[str, str]:
    """sha256 of every file of a verified release, `ssld.json` too.

    Raises:
        InputError: as `verify`.
    """
    sums = {name: entry["sha256"] for name, entry in verify(folder)["files"].items()}
    return {**sums, MANIFEST: sha256_of(folder / MANIFEST)}


def same_release(folder: Path, manifest: Path) -> bool:
    """Whether a folder is exactly the release of that `ssld.json`, every byte, and nothing else."""
    own = folder / MANIFEST
    if own.is_symlink() or not own.is_file() or sha256_of(own) != sha256_of(manifest):
        return False
    try:
        return sums_of(folder).keys() == names_in(folder)
    except InputError:
        return False


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, thus on the same disk, to be renamed to it when complete."""
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    part.mkdir(parents=True)
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def refuse_full(out: Path) -> None:
    """
    Raises:
        InputError: there is something at `out` already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty: give a new folder, or an empty one")


@contextmanager
def new_release(out: Path, source: str) -> Iterator[Path]:
    """A folder to make a release in, which becomes `out` once it is verified.

    Args:
        source: what errors about the folder name instead of it.

    Raises:
        InputError: `out` is not empty or cannot be written, or the release is wrong; then nothing
            is left of it.
    """
    refuse_full(out)
    try:
        with staging(out.absolute()) as part, naming(part, source):
            yield part
            verify(part)
            part.replace(out)  # onto an empty folder too
    except OSError as error:
        raise InputError(
            f"{out} cannot be written ({one_line(error)}); free space or give another folder"
        ) from error


@contextmanager
def naming(part: Path, shown: str) -> Iterator[None]:
    """Errors about a temporary folder name where its content is from instead."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace(str(part), shown)) from error
