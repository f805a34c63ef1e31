"""A zip archive of images, read in place: labels are the names of folders, as in a folder.

Nothing is unpacked, so a member's name is never a path on this machine. What all images have before
their names (`photos/photos/`, as archives of a folder have it) is left off, so that classes are
classes whether the folder itself was packed or what is in it.
"""

from __future__ import annotations

import os
import posixpath
import struct
import zipfile
import zlib
from collections.abc import Iterable

import fsspec
import numpy as np

from ssld.common.errors import InputError
from ssld.common.files import WRONG
from ssld.data.folder import EXTENSIONS
from ssld.data.labels import class_order
from ssld.data.patterns import choose, refuse_splits, role
from ssld.data.source import HIDDEN, Account
from ssld.data.storage import Address, absolute, is_hidden, read_range, stamp
from ssld.data.texts import Texts

LARGEST = 2**30
"""Bytes of an unpacked image; a damaged or hostile archive can claim any number."""
_LOCAL_HEADER = 30
"""Bytes of a member's own header before its name (APPNOTE.TXT 4.3.7)."""
_STORED, _DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
_ENCRYPTED, _UTF8 = 0x1, 0x800
"""Bits of a member's flags (APPNOTE.TXT 4.4.4)."""


class Members:
    """The files of a zip archive, local or remote, by their number in its table of contents.

    Raises:
        InputError: there is no such file, it is no zip archive, or it is cut off.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.stamp = stamp(path)
        try:
            with fsspec.open(path, "rb") as file, zipfile.ZipFile(file) as archive:  # type: ignore
                members = archive.infolist()
            self.names = Texts([_name(x) for x in members])
            facts = [
                (x.header_offset, x.compress_size, x.file_size, x.compress_type, x.CRC, x.flag_bits)
                for x in members
            ]
            self._facts = np.array(facts, np.int64).reshape(-1, 6)
        except (*WRONG, OSError, struct.error) as error:
            raise InputError(f"{path}: not a whole zip archive ({error}); fetch it anew") from error

    def __len__(self) -> int:
        return len(self._facts)

    def size(self, row: int) -> int:
        """Bytes of the file when it is unpacked."""
        return int(self._facts[row, 2])

    def is_encrypted(self, row: int) -> bool:
        return bool(self._facts[row, 5] & _ENCRYPTED)

    def read(self, row: int) -> bytes:
        """Raises OSError: it cannot be read, or is not what the table of contents says."""
        offset, packed, size, method, crc, _ = self._facts[row].tolist()
        if method not in (_STORED, _DEFLATED) or size > LARGEST:
            raise OSError(f"is packed by method {method}, to {size:,} bytes; pack it anew")
        header = read_range(self.path, offset, _LOCAL_HEADER)
        begin = offset + _LOCAL_HEADER + sum(np.frombuffer(header[26:30], "<u2").tolist())
        data = read_range(self.path, begin, packed)
        if method == _DEFLATED:
            try:
                unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
                data = unpacker.decompress(data, size + 1)
            except zlib.error as error:
                raise OSError(f"is damaged in its archive ({error})") from error
        if header[:4] != b"PK\3\4" or len(data) != size or zlib.crc32(data) != crc:
            raise OSError("is damaged in its archive, or that was changed since the start")
        return data


def _name(member: zipfile.ZipInfo) -> str:
    """With slashes, and as UTF-8 where it is although nothing says so, as macOS writes it."""
    name = member.orig_filename.split("\0")[0]
    if not (member.flag_bits & _UTF8 or name.isascii()):
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            pass  # a name in the code page of DOS
    return name.encode("utf-8", "backslashreplace").decode().replace("\\", "/")


class ZipSource:
    """The images of a zip archive, or of one of its splits.

    Args:
        path: as given.
        archive: the file.
        split: see `patterns.choose`; None for all.

    Raises:
        InputError: see `Members`; it has no image, or is encrypted; it holds several splits and
            none was asked for, or not the one that was.
    """

    def __init__(self, path: str, archive: str, split: str | None = None) -> None:
        self.path = path
        self.account = Account()
        self._members = Members(archive)
        chosen = _images(self._members, self.account)
        if chosen and self._members.is_encrypted(next(iter(chosen.values()))):
            raise InputError(f"{archive}: is encrypted; unpack it and give the folder")
        if not chosen:
            left = self.account.left_out()
            raise InputError(
                f"{archive}: no image in this archive{f' (it has {left})' if left else ''}"
            )
        common = _common_folder(chosen)
        names = {name[len(common) :]: row for name, row in chosen.items()}
        folders = {name.partition("/")[0] for name in names if "/" in name}
        if split is not None and not _is_split(common, split):
            common = f"{common}{choose(archive, split, folders)}/"
            names = {x[len(common) :]: row for x, row in chosen.items() if x.startswith(common)}
            folders = {name.partition("/")[0] for name in names if "/" in name}
        refuse_splits(archive, folders)
        if common:
            self.account.note("of them below the folder", common, len(names))
        ordered = sorted(names)
        self._names = Texts(ordered)
        self._rows = np.array([names[name] for name in ordered])
        self.class_names = class_order(folders) or None

    def __len__(self) -> int:
        return len(self._names)

    def sample_id(self, i: int) -> str:
        return self._names[i]

    def location(self, i: int) -> str:
        return f"{self._members.path}:{self._members.names[int(self._rows[i])]}"

    def address(self, i: int) -> Address:
        return Address(absolute(self._members.path), int(self._rows[i]))

    def label(self, i: int) -> str | None:
        folder, slash, _ = self.sample_id(i).partition("/")
        return folder if slash else None

    def labeled(self) -> np.ndarray:
        return self._names.have("/")

    def size(self, i: int) -> int:
        return self._members.size(int(self._rows[i]))

    def listed(self, rows: np.ndarray) -> tuple[list[str], list[int | None]]:
        return self._names.take(rows), [self.size(i) for i in rows.tolist()]

    def read(self, i: int) -> bytes:
        return self._members.read(int(self._rows[i]))


def _images(members: Members, account: Account) -> dict[str, int]:
    """The row of each image by its name; the rest is counted. Of one name the later one counts, as
    when an archive is unpacked."""
    chosen: dict[str, int] = {}
    for row, name in enumerate(members.names):
        plain = posixpath.normpath(name)
        if name.endswith("/"):
            continue
        if plain.startswith(("/", "..")) or plain[1:3] == ":/":
            account.leave("whose name leads out of the archive", name)
        elif is_hidden(plain):
            account.leave(HIDDEN, plain)
        elif os.path.splitext(plain)[1].lower() not in EXTENSIONS:
            account.leave_other(plain)
        else:
            if plain in chosen:
                account.leave("replaced by a later file of the same name", plain)
            chosen[plain] = row
    return chosen


def _is_split(folder: str, split: str) -> bool:
    """Whether `a/train/` is what was asked for, the only split that the archive has."""
    name = folder.rstrip("/").rpartition("/")[2]
    return name == split or bool(role(name) and role(name) == role(split))


def _common_folder(names: Iterable[str]) -> str:
    """`a/b/` where all names begin so; empty where they have no folder in common."""
    folders = [name.rpartition("/")[0] for name in names]
    common = posixpath.commonpath(folders) if all(folders) else ""
    return f"{common}/" if common else ""
