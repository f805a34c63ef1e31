"""Images and labels of one tar: WebDataset's samples, and what links and odd names make of them.

WebDataset (Aizman et al. 2019, github.com/webdataset) takes a name up to the first dot of its last
part for the sample's key. Tools that cut at the last dot write `cam0.v2.jpg` and `cam0.v2.cls`: all
images of a set may then share a key, so a label belongs to the image that has the same name up to
the last dot where there is one, and else to its sample.
"""

from __future__ import annotations

import json
import posixpath
import sys
import tarfile
from collections.abc import Iterable, Iterator
from typing import IO, NamedTuple

import pyarrow as pa

from ssld.common.errors import InputError
from ssld.data.folder import EXTENSIONS
from ssld.data.source import HIDDEN, Account, ending
from ssld.data.storage import is_hidden, is_text

SCHEMA = pa.schema(
    [("key", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), ("label", pa.string())]
)
NESTED_LINKS = 40
"""Links that are followed to a file, as Linux does."""


class Member(NamedTuple):
    """A file in a tar, by where its bytes are."""

    name: str
    offset: int
    size: int


class _Image(NamedTuple):
    offset: int
    size: int
    extension: str
    """As it is written, from the first dot of the name on."""


class Samples:
    """Images and labels of one tar, found in any order.

    Args:
        where: the tar, for messages.
        folder: what keys begin with.
    """

    def __init__(self, file: IO[bytes], where: str, folder: str = "") -> None:
        self.file = file
        self.where = where
        self.folder = folder
        self.account = Account()
        self.links: dict[str, tuple[str, str]] = {}
        """Plain name of each link -> its name as written, and the plain name of its target."""
        self._images: dict[str, _Image] = {}
        self._labels: dict[str, str] = {}
        """By the sample's key."""
        self._dotted: dict[str, tuple[str, str]] = {}
        """By the name up to the last dot, where that is not the key: the key and the label."""

    def add(self, member: tarfile.TarInfo) -> None:
        """Take what is an image or a label, and count the rest."""
        plain = plain_name(member.name)
        if member.islnk() or member.issym():
            if is_hidden(plain):
                self.account.leave(HIDDEN, plain)
            elif _wanted(plain):
                base = "" if member.islnk() else posixpath.dirname(plain)
                target = posixpath.normpath(posixpath.join(base, member.linkname))
                self.links[plain] = member.name, target
            else:
                self.account.leave("link to what is no image or label", plain)
        elif not member.isfile():
            self.account.leave("no file but a pipe or device", plain)
        elif member.issparse() and _wanted(plain):
            self.account.leave("sparse file, unpack the tar", plain)
        else:
            self.add_file(Member(member.name, member.offset_data, member.size))

    def add_file(self, member: Member) -> None:
        """The same of a file whose place is known."""
        plain = plain_name(member.name)
        if is_hidden(plain):
            self.account.leave(HIDDEN, plain)
            return
        path = plain if self.folder else member.name
        folder, slash, name = path.rpartition("/")
        stem, _, extension = name.partition(".")
        key = as_text(f"{self.folder}{folder}{slash}{stem}")
        if _is_image(name):
            self._add_image(key, _Image(member.offset, member.size, sys.intern(f".{extension}")))
        elif ending(name) in (".cls", ".json"):
            self._add_label(key, f".{extension}", member)
        else:
            self.account.leave_other(plain)

    def _add_image(self, key: str, image: _Image) -> None:
        # One sample may hold several images; each is one of its own.
        second = f"{key} [{image.extension.lower()}]"
        third = f"{key} [{image.extension}]"  # two names that differ in capitals alone
        for name in (key, second, third):
            known = self._images.get(name)
            if known is None:
                self._images[name] = image
                return
            if known.extension == image.extension:  # the later one counts, as tar unpacks
                self.account.leave("replaced by a later file of the same name", as_text(name))
                self._images[name] = image
                return

    def _add_label(self, key: str, extension: str, member: Member) -> None:
        self.file.seek(member.offset)
        try:
            content = self.file.read(member.size).decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise InputError(f"{self.where}: {member.name} is not text ({error})") from error
        is_number = extension.lower().endswith(".cls")
        value = content if is_number else self._json_label(content, member.name)
        if value is None or value == "":
            self.account.leave(f"{ending(member.name)} without a label", plain_name(member.name))
        elif extension.count(".") == 1:
            self._labels[key] = value
        else:
            self._dotted[key + extension.rpartition(".")[0]] = key, value

    def _json_label(self, content: str, name: str) -> str | None:
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.where}: {name} is not JSON ({error})") from error
        label = value.get("label") if isinstance(value, dict) else None
        if isinstance(label, float) and label.is_integer():
            label = int(label)
        if isinstance(label, bool | float | list | dict) or not is_text(str(label)):
            raise InputError(
                f"{self.where}: {name}: label is {str(label)[:50]}; give a class number or a name"
            )
        return None if label is None else str(label)

    def table(self) -> pa.Table:
        """Rows of SCHEMA: all images, in the order of their members."""
        names = list(self._images)
        columns = [
            names,
            [self._images[name].offset for name in names],
            [self._images[name].size for name in names],
            list(self._paired()),
        ]
        return pa.table(columns, schema=SCHEMA)

    def _paired(self) -> Iterator[str | None]:
        """The label of each image; labels without an image are counted."""
        by_key, dotted = {name: name for name in self._images}, {}
        for name, image in self._images.items():
            key = name.removesuffix(f" [{image.extension.lower()}]")
            by_key[name] = key.removesuffix(f" [{image.extension}]")
            if image.extension.count(".") > 1:
                dotted[name] = by_key[name] + image.extension.rpartition(".")[0]
        met = set(dotted.values())
        exact = self._dotted.keys() & met
        rest = {key: value for full, (key, value) in self._dotted.items() if full not in exact}
        labels = rest | self._labels  # of a sample's fields `cls` is its label, if there is one
        if exact:
            text = "labels by names up to the last dot"
            self.account.note(text, min(exact), len(exact))
        lost = labels.keys() - set(by_key.values())
        if lost:
            self.account.leave("label without an image", min(lost), len(lost))
        for name in self._images:
            full = dotted.get(name)
            own = self._dotted[full][1] if full in exact else None
            yield own if own is not None else labels.get(by_key[name])


def resolve(samples: Samples, members: Iterable[tarfile.TarInfo]) -> None:
    """Add the links that lead to files of the same tar, and count the others.

    Args:
        members: all of the tar, once more.
    """
    targets = {}
    for plain, (_, target) in samples.links.items():
        for _ in range(NESTED_LINKS):
            if target not in samples.links:
                targets[plain] = target
                break
            target = samples.links[target][1]
    wanted, members_by_name = set(targets.values()), {}
    for member in members:
        name = plain_name(member.name)
        if name in wanted and member.isfile() and not member.issparse():
            members_by_name[name] = member
    for plain, (name, target) in samples.links.items():
        file = members_by_name.get(targets.get(plain, ""))
        if file is None:
            samples.account.leave("link that leads to no file of this tar", f"{plain} -> {target}")
        else:
            samples.add_file(Member(name, file.offset_data, file.size))
            samples.account.note("links resolved", plain)


def plain_name(name: str) -> str:
    """A member's name without `./` before it."""
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def as_text(name: str) -> str:
    """A name as UTF-8: bytes that are none as `\\xe9`."""
    if name.isascii():
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _is_image(name: str) -> bool:
    return f".{name.lower().rpartition('.')[2]}" in EXTENSIONS


def _wanted(name: str) -> bool:
    return _is_image(name) or ending(name) in (".cls", ".json")
