"""Which picture a file of annotations means, where its tool wrote a name that is none here: a path
of another machine, a name with another ending."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from downstream.dense.texts import shown, writable
from ssld.common.errors import InputError
from ssld.data.folder import EXTENSIONS

DRIVE = re.compile(r"^[A-Za-z]:(?=[\\/])")


def posix(name: str) -> str:
    """A path of Windows as one of here, `D:\\x\\a.jpg` as `/x/a.jpg`; others as they are, without
    `./`."""
    if "\\" in name or DRIVE.match(name):
        return Path(DRIVE.sub("", name).replace("\\", "/")).as_posix()
    return Path(name).as_posix()


def shortened(name: str) -> list[str]:
    """A posix path, then what is left of it without its first folders: `/x/y/a.jpg`, `x/y/a.jpg`,
    `y/a.jpg`, `a.jpg`."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return list(dict.fromkeys([name, *("/".join(parts[i:]) for i in range(len(parts)))]))


def common_folder(paths: Sequence[str]) -> tuple[str, list[str]]:
    """The folder that all files are in, and their names in it; some may be absolute."""
    if len(set(map(os.path.isabs, paths))) > 1:
        paths = list(map(os.path.abspath, paths))
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    return folder, [os.path.relpath(path, folder) for path in paths]


def missing_from(folder: str, names: Sequence[str]) -> list[int]:
    """Which of `names` are no files in `folder`: one listing of each folder, not a stat a file."""
    by_folder: defaultdict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        by_folder[os.path.dirname(name)].append(i)
    missing: list[int] = []
    for subfolder, members in by_folder.items():
        try:
            present = set(os.listdir(os.path.join(folder, subfolder)))
        except OSError:
            present = set()
        missing += [i for i in members if os.path.basename(names[i]) not in present]
    return sorted(missing)


def images_by_stem(folder: Path) -> dict[str, list[str]]:
    """Image files in a folder, by name without extension.

    Raises:
        InputError: it cannot be listed.
    """
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"{folder}: the folder of images cannot be listed ({error})") from error
    by_stem: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        stem, ending = os.path.splitext(name)
        if not name.startswith(".") and ending.lower() in EXTENSIONS:
            if not writable(name):
                raise InputError(f"{folder}: the name {shown(name)} is not UTF-8; rename the file")
            by_stem[stem].append(name)
    return dict(by_stem)
