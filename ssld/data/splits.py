"""train, val and test: a folder that holds several of them is no source, one of them is."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ssld.common.errors import InputError

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
