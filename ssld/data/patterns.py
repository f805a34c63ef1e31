"""Patterns of files: `x-{000..127}.tar`, `{a,b}.parquet`, `*`, `?`, `[...]`."""

from __future__ import annotations

import glob
import itertools
import os
import re

from ssld.common.errors import InputError
from ssld.data.storage import is_hidden, is_remote, match_files

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
