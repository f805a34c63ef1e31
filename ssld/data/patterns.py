"""What names of files say: patterns (`x-{000..127}.tar`, `{a,b}.parquet`, `*`, `?`, `[...]`), and
splits. A folder that holds several of train, val and test is no source, one of them is."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterable

from ssld.common.errors import InputError
from ssld.data.storage import is_hidden, is_remote, match_files

TABLES = (".parquet", ".arrow")
LISTS = (".csv", ".tsv", ".txt")
"""Endings of files that name or hold images."""

MAX_FILES = 1_000_000
"""Files that braces may name."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?[0-9]{1,9})\.\.(-?[0-9]{1,9})(?:\.\.(-?[0-9]{1,9}))?")


def expand(pattern: str) -> list[str]:
    """Braces as bash expands them: `a-{08..10}.tar` -> a-08.tar, a-09.tar, a-10.tar, `{5..3}` goes
    down, `{0..9..3}` in steps, `{a,b}` names each; `*`, `?` and `[...]` by what exists, sorted. A
    file of that very name comes first.

    Raises:
        InputError: nothing fits `*`, `?` or `[...]`; more than MAX_FILES names.
    """
    if not is_remote(pattern) and os.path.exists(pattern):
        return [pattern]
    names, count = [], 0
    for name in braced(pattern):
        count += 1
        if count > MAX_FILES:
            raise InputError(f"{pattern}: names more than {MAX_FILES:,} files; check the braces")
        names += _existing(name)
    return names


def is_pattern(path: str) -> bool:
    """Whether a path has braces that can be expanded, or `*`, `?`, `[`."""
    return glob.has_magic(path) or any(_choices(x) is not None for x in _BRACES.findall(path))


def braced(pattern: str) -> itertools.chain[str] | list[str]:
    """The names that braces stand for, lazily; those that are no range and no list stay."""
    for match in _BRACES.finditer(pattern):  # the innermost are expanded first
        choices = _choices(match.group(1))
        if choices is not None:
            head, tail = pattern[: match.start()], pattern[match.end() :]
            return itertools.chain.from_iterable(braced(head + x + tail) for x in choices)
    return [pattern]


def _choices(inside: str):
    """What stands between braces, one by one; None where they are no pattern."""
    if "," in inside:
        return iter(inside.split(","))
    match = _RANGE.fullmatch(inside)
    if not match:
        return None
    first, last, step = match.groups()
    width = max(map(len, (first, last))) if re.match(r"-?0[0-9]|.*\.\.-?0[0-9]", inside) else 0
    begin, end = int(first), int(last)
    stride = abs(int(step or 1)) or 1
    numbers = range(begin, end + 1, stride) if begin <= end else range(begin, end - 1, -stride)
    return (str(n).zfill(width) for n in numbers)


def _existing(name: str) -> list[str]:
    if not glob.has_magic(name) or (not is_remote(name) and os.path.exists(name)):
        return [name]
    names = match_files(name) if is_remote(name) else sorted(glob.glob(name, recursive=True))
    base = re.split(r"[*?[]", name, maxsplit=1)[0].rpartition("/")[0]
    names = [x for x in names if not is_hidden(x[len(base) :].lstrip("/"))]
    if not names:
        what = "shards" if name.lower().endswith(".tar") else "files"
        raise InputError(f"{name}: no such {what}; check the path")
    return names


_SPLIT = re.compile(
    r"(train(?:ing)?|val(?:id|idation)?|test(?:ing)?)(?:[-_ ]?(?:\d{4}|images?|set|split))?",
    re.IGNORECASE,
)


def role(name: str) -> str | None:
    """train, val or test for `Training`, `valid`, `val2017`, `test_images` and the like."""
    match = _SPLIT.fullmatch(name)
    if match is None:
        return None
    word = match.group(1).lower()
    return next(x for x in ("train", "val", "test") if word.startswith(x))


def file_split(name: str) -> str | None:
    """The split of a Parquet file or shard: `train-00000-of-00002.parquet`, `train/0000.parquet`,
    `imagenet1k-validation-00.tar`."""
    *folders, file = name.split("/")
    words = [*re.split(r"[-_.]", file), *reversed(folders)]
    return next((word for word in words if role(word)), None)


def refuse_splits(path: str, names: Iterable[str]) -> None:
    """
    Args:
        names: of folders that hold images, directly in `path`.

    Raises:
        InputError: some are splits of different roles and, as in no table of classes, most are.
    """
    every = set(names)
    splits = sorted(name for name in every if role(name))
    if len({role(name) for name in splits}) > 1 and len(every) <= 2 * len(splits):
        raise InputError(
            f"{path}: holds the splits {', '.join(splits)}, which would be read together, as "
            f"classes; give one of them, as {path}::{_first(splits)}"
        )


def refuse_split_files(path: str, names: Iterable[str]) -> None:
    """
    Args:
        path: a folder or pattern of Parquet files or shards.
        names: of its files.

    Raises:
        InputError: most are of splits, and these of different roles.
    """
    every = list(names)
    named = [split for name in every if (split := file_split(name))]
    splits = sorted(set(named))
    if len({role(name) for name in splits}) > 1 and len(every) <= 2 * len(named):
        raise InputError(
            f"{path}: holds files of the splits {', '.join(splits)}, which would be read together; "
            f"give those of one, as FOLDER::{_first(splits)} or by a pattern such as "
            f"FOLDER/*{_first(splits)}*{every[0][every[0].rindex('.') :]}"
        )


def _first(splits: list[str]) -> str:
    return next((name for name in splits if role(name) == "train"), splits[0])


def choose(path: str, split: str, names: Iterable[str]) -> str:
    """That of `names` that is the split: of that very name, or else of its role.

    Raises:
        InputError: none is, or several are.
    """
    every = sorted(set(names))
    chosen = [name for name in every if name == split]
    chosen = chosen or [name for name in every if role(split) and role(name) == role(split)]
    if len(chosen) == 1:
        return chosen[0]
    known = ", ".join(name for name in every if role(name)) or ", ".join(every[:5]) or "no folder"
    raise InputError(
        f"{path}::{split}: {'several splits are' if chosen else 'no split is'} named so in {path}, "
        f"which holds {known}"
    )
