"""Where images come from: a folder, a table, a list, tar shards or a zip archive, chosen by what a
path is."""

from __future__ import annotations

import functools
import glob
import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from ssld.common.errors import InputError
from ssld.common.packages import is_installed, say_left_out
from ssld.common.streams import aside
from ssld.data.folder import EXTENSIONS, FolderSource, list_folder
from ssld.data.patterns import (
    LISTS,
    TABLES,
    choose,
    expand,
    file_split,
    is_pattern,
    refuse_split_files,
    refuse_splits,
    role,
)
from ssld.data.source import Source, ending
from ssld.data.storage import (
    Address,
    hides,
    is_hidden,
    is_remote,
    list_files,
    read_all,
    read_range,
)
from ssld.data.zip_archive import ZipSource


def open_source(path: str) -> Source:
    """Open what a path is, local or remote (any fsspec URL), and say once what it holds.

    - a folder of images; `FOLDER::train` for one of its splits; one image, or a pattern of images,
    - a `.parquet` manifest or table of the hub, or an `.arrow` one: a file, several by a pattern,
      or a folder of them (`FOLDER::train` for a split), as `save_to_disk` writes it, too,
    - a list: `.csv`, `.tsv` or `.txt`; `LIST::FOLDER` where its images lie elsewhere,
    - a `.zip` of images; `x.zip::train` for one of its splits,
    - tar shards: one, a pattern (`x-{000..127}.tar`, `x-*.tar`), a folder of them, a tar of tars.

    `~` is the home folder.

    Raises:
        InputError: it does not exist, is empty, is none of these, or holds several splits.
    """
    source = _open(os.path.expanduser(path))
    _print_once(source)
    return source


def _open(path: str) -> Source:
    is_folder, lower = os.path.isdir(path), path.lower()
    base, colons, split = path.rpartition("::")
    chained = is_remote(base) and "." in split  # zip://x::archive.zip
    if colons and not os.path.exists(path) and not chained:
        if base.lower().endswith(LISTS):
            return _list(path, base, os.path.expanduser(split))
        if base.lower().endswith(".zip"):
            return ZipSource(path, base, split)
        if "/" not in split:
            return _open_split(base, split)
    if not is_folder and lower.endswith(TABLES):
        return _tables(path, _of_one_split(path))
    if not is_folder and lower.endswith(".tar"):
        return _shards(path, _of_one_split(path))
    if not is_folder and not is_pattern(path) and lower.endswith((*LISTS, ".zip")) and not chained:
        return ZipSource(path, path) if lower.endswith(".zip") else _list(path, path)
    if is_remote(path):
        return _open_folder(path)
    images = {} if is_folder else _image_files(path)
    if images:
        folder = os.path.commonpath([os.path.dirname(name) for name in images]) or "."
        return FolderSource(folder, {os.path.relpath(x, folder): n for x, n in images.items()})
    if not os.path.exists(path):
        if is_pattern(path):
            raise InputError(_about_pattern(path))
        raise InputError(f"{path}: no such file or folder; check the path")
    if not is_folder:
        raise InputError(
            f"{path}: not a folder, table (.parquet, .arrow), list (.csv, .tsv, .txt), .zip or "
            f".tar{_packed(path)}"
        )
    return _open_folder(path)


def _image_files(path: str) -> dict[str, int | None]:
    """Files of images that a local path or pattern names, with their bytes; empty if it also fits
    something else, which would be left out unseen."""
    fitting = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
    images = [x for x in fitting if x.lower().endswith((*EXTENSIONS,)) and os.path.isfile(x)]
    return {x: os.path.getsize(x) for x in images} if len(images) == len(fitting) else {}


def _about_pattern(pattern: str) -> str:
    """Why a pattern is no source: what it fits, and what to give."""
    fitting = glob.glob(pattern, recursive=True)
    if not fitting:
        return f"{pattern}: nothing fits this pattern; check the path"
    folder = re.split(r"[*?[{]", pattern, maxsplit=1)[0].rpartition("/")[0] or "."
    return (
        f"{pattern}: a pattern is one of images, of .parquet, .arrow or .tar files, and this one "
        f"fits {len(fitting):,} files and folders that are not all of one kind; give their folder, "
        f"{folder}, which is read with all below it, or each as a source of its own"
    )


def _of_one_split(pattern: str) -> list[str]:
    files = expand(pattern)
    refuse_split_files(pattern, [file.rpartition("/")[2] for file in files])
    return files


def _packed(path: str) -> str:
    if re.search(r"\.(tgz|tar\.\w+)$", path.lower()):
        return "; a compressed tar cannot be read at random: uncompress it to a .tar"
    return "; unpack it" if path.lower().endswith((".7z", ".rar")) else ""


def _open_folder(path: str) -> Source:
    files = list_files(path) if is_remote(path) else None  # once: of millions it takes minutes
    if files is None:
        entries = sorted(name for name in os.listdir(path) if not hides(name))
    else:
        entries = sorted(name for name in files if "/" not in name and not is_hidden(name))
    shards = [name for name in entries if name.lower().endswith(".tar")]
    if shards:
        refuse_split_files(path, shards)
        source = _shards(path, [f"{path.rstrip('/')}/{name}" for name in shards])
        for name in entries:
            if name not in shards:
                is_folder = files is None and os.path.isdir(os.path.join(path, name))
                source.account.leave("folder beside shards" if is_folder else ending(name), name)
        return source
    try:
        source = FolderSource(path, files)
    except InputError:
        tables = _tables_below(path, files)
        if tables:
            _refuse_saved_splits(path, entries)
            refuse_split_files(path, tables)
            return _tables(path, [f"{path.rstrip('/')}/{name}" for name in tables])
        if files is None:
            _hint_at_shards(path)
        raise
    refuse_splits(path, source.class_names or ())
    return source


def _tables_below(path: str, files: Iterable[str] | None) -> list[str]:
    """Tables below a folder, relative; `files` are those of a remote one."""
    if files is None:
        names = list_folder(path, TABLES)[0]
    else:
        names = sorted(x for x in files if x.lower().endswith(TABLES) and not is_hidden(x))
    if not names:
        return []
    from ssld.data.table_file import tables_among

    return tables_among(path, names)


def _refuse_saved_splits(path: str, entries: Iterable[str]) -> None:
    """Of a saved `DatasetDict`, whose splits may have any names."""
    if "dataset_dict.json" not in entries:
        return
    try:
        splits = json.loads(read_all(f"{path.rstrip('/')}/dataset_dict.json"))["splits"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        splits = []
    if len(splits) > 1:
        raise InputError(
            f"{path}: holds the splits {', '.join(map(str, splits))}, which would be read "
            f"together; give one of them, as {path}::{splits[0]}"
        )


def _hint_at_shards(path: str) -> None:
    shards, _ = list_folder(path, {".tar"})
    if shards:
        folder = os.path.dirname(os.path.join(path, shards[0]))
        raise InputError(f"{path}: the shards lie deeper; give their folder, such as {folder}")


def _open_split(base: str, split: str) -> Source:
    """One split of a folder: a folder in it, or Parquet files that are named so."""
    if is_remote(base):
        names = sorted(name for name in list_files(base) if not is_hidden(name))
        folders = {name.split("/")[0] for name in names if "/" in name}
    elif os.path.isdir(base):
        names = list_folder(base, {*TABLES, ".tar"})[0]
        folders = {name for name in os.listdir(base) if os.path.isdir(os.path.join(base, name))}
        folders = {name for name in folders if not hides(name)}
    else:
        raise InputError(f"{base}: no such folder; FOLDER::SPLIT names a split of a folder")
    if any(split == name or (role(split) and role(split) == role(name)) for name in folders):
        return _open(f"{base.rstrip('/')}/{choose(base, split, folders)}")
    files = [name for name in names if name.lower().endswith((*TABLES, ".tar"))]
    by_split = {name: file_split(name) for name in files}
    chosen = choose(base, split, [x for x in by_split.values() if x] or folders)
    chosen_files = [f"{base.rstrip('/')}/{name}" for name in files if by_split[name] == chosen]
    if len({name.lower().endswith(".tar") for name in chosen_files}) > 1:
        raise InputError(f"{base}::{split}: holds both .tar shards and tables; give a pattern")
    if chosen_files[0].lower().endswith(".tar"):
        return _shards(f"{base}::{split}", chosen_files)
    return _tables(f"{base}::{split}", chosen_files)


def read_address(address: Address) -> bytes:
    """The encoded image there, without its source. Raises OSError."""
    path, offset, size = address
    if offset is None:
        return read_all(path)
    return _blobs(path).read(offset) if size is None else read_range(path, offset, size)


@functools.cache
def _blobs(path: str) -> Any:
    from ssld.data.manifest import rows_of

    return rows_of(path)


# What needs pyarrow is imported where such a source is opened: folders and archives need none.


def _tables(path: str, files: Sequence[str]) -> Source:
    from ssld.data.manifest import open_tables

    return open_tables(path, files)


def _list(path: str, file: str, folder: str | None = None) -> Source:
    from ssld.data.text_list import ListSource

    return ListSource(path, file, folder)


def _shards(path: str, files: list[str]) -> Source:
    from ssld.data.tar import ShardSource

    return ShardSource(path, files)


def key(sample_id: str) -> str:
    """A sample's file name without folders and extension: `a/b.JPEG`, `shard/a/b` and a shard's
    second image of a sample, `shard/a/b [.png]`, are all `b`."""
    name = re.sub(r" \[\.[^]]*\]$", "", sample_id.rpartition("/")[2])
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in EXTENSIONS else name  # ids of manifests may have any dots


def describe(source: Source) -> str:
    """How many images and labels a source has, and what it left out."""
    labeled, names = int(source.labeled().sum()), source.class_names
    if not labeled:
        labels = "no labels"
    else:
        labels = _many(len(names), "class", "classes") if names else "labels are numbers"
        if labeled < len(source):
            labels += f", {len(source) - labeled:,} without a label"
    account, left = source.account, source.account.left_out()
    parts = [f"{source.path}: {_many(len(source), 'image', 'images')}, {labels}"]
    parts += [f"{n:,} {text} ({account.examples[text]})" for text, n in account.notes.items()]
    line = "; ".join([*parts, f"left out: {left}"] if left else parts)
    return line.encode("utf-8", "backslashreplace").decode()  # what any terminal and log can show


def _many(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


_printed: set[str] = set()


def _print_once(source: Source) -> None:
    """Print the line aside: once, by the main process."""
    if os.environ.get("RANK", "0") != "0":
        return
    line = describe(source)
    if line not in _printed:  # a recipe opens what its stages open again
        _printed.add(line)
        print(line, file=aside())
    if not is_installed("simplejpeg"):
        say_left_out("simplejpeg", "Pillow decodes JPEGs, more slowly, and skips over some damage")
