"""Releases in one tar, for sites without a network: `NAME/ssld.json`, `NAME/model.safetensors`, ...

The tar is plain and deterministic: the same releases give the same bytes. What comes out of one is
judged before a byte is written: regular files below NAME/ only, so no link, no device and no name
that leads elsewhere; and no release is put in place before every sha256 of it was verified.
"""

from __future__ import annotations

import mmap
import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from tqdm import tqdm
from tqdm.utils import CallbackIOWrapper

from zoo.errors import InputError, one_line
from zoo.release import MANIFEST, naming, same_release, staging, sums_of, verify

CHUNK_BYTES = 1 << 20
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
DAMAGE = (
    *(tarfile.TarError, EOFError, ValueError, RecursionError, OverflowError),
    *(LookupError, AttributeError, TypeError),
)
"""What tarfile raises at headers that nobody wrote: a thousand long names for one file, say."""
REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)


def bundle(folders: Mapping[str, Path], tar: Path) -> None:
    """Write the sealed release folders as `NAME/...` into one tar, which appears when complete.

    Raises:
        InputError: a name is no plain name, a folder is not a release or was changed, or the tar
            cannot be written.
    """
    sources: dict[str, Path] = {}
    for name, folder in folders.items():
        if not NAME.fullmatch(name):
            raise InputError(
                f"{name!r} cannot name a release in a bundle; use letters, digits, '.', '_', '-'"
            )
        sources |= {f"{name}/{file}": folder / file for file in sums_of(folder)}
    try:
        with staging(tar) as folder:
            part = folder / tar.name
            with part.open("xb") as stream:
                _write(sources, stream)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(tar)
    except OSError as error:
        raise InputError(f"cannot write {tar}: {one_line(error)}") from error


def unbundle(tar: Path, out: Path) -> list[str]:
    """Extract the releases of a bundle into `out`, verified; returns the names that are new there.

    A release that is already there, the same in every byte, is kept.

    Raises:
        InputError: the tar is damaged or holds anything but releases (then nothing is written), a
            sha256 differs, or `out` holds something else of that name.
    """
    if tar.exists() and not tar.is_file():
        raise InputError(f"{tar} is no file: give a bundle made by `ssld zoo bundle`")
    try:
        with _mapped(tar) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            members = _checked(archive, tar)
            with staging(out / "bundle") as part:
                _extract(archive, members, part)
                return _place(part, tar, out)
    except InputError:
        raise
    except DAMAGE as error:
        raise InputError(
            f"{tar} is damaged or not an uncompressed tar ({error}); copy the bundle anew"
        ) from error
    except OSError as error:
        raise InputError(f"cannot extract {tar} to {out}: {one_line(error)}") from error


@contextmanager
def _mapped(tar: Path) -> Iterator[Any]:
    """The file in memory as the system maps it: a header that states a terabyte is read as far as
    there is a file, where a stream would take the memory first."""
    with tar.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        yield mapped


def _counted(stream: IO[bytes], progress: tqdm) -> IO[bytes]:
    """The stream, which moves the bar on as it is read."""
    return cast(IO[bytes], CallbackIOWrapper(progress.update, stream, "read"))


def _progress(what: str, sizes: Iterable[int]) -> tqdm:
    return tqdm(total=sum(sizes), unit="B", unit_scale=True, desc=what, disable=None)


def _write(sources: Mapping[str, Path], stream: IO[bytes]) -> None:
    sizes = {name: path.stat().st_size for name, path in sources.items()}
    with (
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive,
        _progress("bundling", sizes.values()) as progress,
    ):
        for name in sorted(sources):
            member = tarfile.TarInfo(name)  # its owner 0, time 0 and mode 644 are the same anywhere
            member.size = sizes[name]
            with sources[name].open("rb") as source:
                archive.addfile(member, _counted(source, progress))


def _checked(archive: tarfile.TarFile, tar: Path) -> dict[str, tarfile.TarInfo]:
    """The files of the archive by name, all of them harmless."""
    files: dict[str, tarfile.TarInfo] = {}
    end = tar.stat().st_size
    for member in archive:
        problem = _problem(member, files)
        if problem:
            raise _refusal(tar, f"{member.name!r}, {problem}")
        if not 0 <= member.size <= end - member.offset_data:
            raise tarfile.ReadError(f"{member.name[:80]!r} is cut off")
        if not member.isdir():
            files[member.name] = member
    for name in sorted({str(parent) for file in files for parent in PurePosixPath(file).parents}):
        if name in files:
            raise _refusal(tar, f"{name!r} both as a file and as a folder")
    names = sorted({file.split("/")[0] for file in files})
    for name in names:
        if f"{name}/{MANIFEST}" not in files:
            raise _refusal(tar, f"{name!r} without {MANIFEST}, which is no release")
    if not names:
        raise _refusal(tar, "no release")
    return files


def _refusal(tar: Path, what: str) -> InputError:
    return InputError(
        f"{tar} holds {what}; nothing was extracted, get a bundle made by `ssld zoo bundle`"
    )


def _problem(member: tarfile.TarInfo, files: Mapping[str, tarfile.TarInfo]) -> str | None:
    """Why a member must not be extracted."""
    parts = member.name.split("/")
    if member.name.startswith("/") or {"", ".", ".."} & set(parts):
        return "a name that leads out of the folder"
    if "\\" in member.name or not member.name.isprintable():
        return "a name with characters that are not allowed"
    if member.issym() or member.islnk():
        return f"a link to {member.linkname!r}"
    if not NAME.fullmatch(parts[0]):
        return "which belongs to no release"
    if member.isdir():
        return None
    if member.type not in REGULAR or member.sparse is not None:
        return "which is not a regular file"
    if len(parts) < 2:
        return "which belongs to no release"
    return "twice" if member.name in files else None


def _extract(archive: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo], part: Path) -> None:
    """Contents only, into new files: owners and modes of the tar are not taken over."""
    with _progress("extracting", (member.size for member in members.values())) as progress:
        for name, member in members.items():
            path = part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            source = archive.extractfile(member)
            assert source is not None, name
            with source, path.open("xb") as target:
                shutil.copyfileobj(_counted(source, progress), target, CHUNK_BYTES)
            if path.stat().st_size != member.size:
                raise tarfile.ReadError(f"{name} is cut off")


def _place(part: Path, tar: Path, out: Path) -> list[str]:
    """Move verified releases from `part` to `out`; all are judged before the first is moved."""
    new = []
    for folder in sorted(part.iterdir()):
        with naming(folder, f"{tar}, {folder.name}"):
            verify(folder)
        place = out / folder.name
        if not place.exists() and not place.is_symlink():
            new.append(folder.name)
        elif not same_release(place, folder / MANIFEST):
            raise InputError(
                f"{place} exists and is not the {folder.name} of the bundle; move it away or give "
                "another folder"
            )
    for name in new:
        (part / name).rename(out / name)
    return new
