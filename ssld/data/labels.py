"""Whether classes are the same: of a network and of labels, and of two networks. One rule, and one
sentence per kind of misfit, for all commands: number, names, order, integers beyond the classes."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssld.common.errors import InputError
from ssld.data.folder import are_numbers, class_order

if TYPE_CHECKING:
    from ssld.data.sources import Source

TRANSFER = "`ssld transfer` trains a new classifier for other classes on this backbone"
SHOWN = 3


@dataclass(frozen=True)
class ClassTable:
    """The classes of a network.

    Args:
        who: as a sentence calls it, for example "the teacher".
        names: in the order of its outputs, where they are known.
    """

    who: str
    count: int
    names: Sequence[str] | None


def table_of(who: str, network: Any) -> ClassTable:
    """Of a `Network` or a `Teacher`."""
    return ClassTable(who, network.num_classes, network.label_names)


def class_names(sources: Sequence[Source]) -> list[str] | None:
    """All class names of the sources, or None where classes are numbers or absent.

    They are in the order that a source states for all of them, else sorted, and as numbers where
    all are: 10 is ten.
    """
    names = {name for source in sources for name in source.class_names or ()}
    whole = (source.class_names for source in sources if set(source.class_names or ()) == names)
    return list(next(whole, None) or class_order(names)) or None


def class_names_for(
    sources: Sequence[Source], label_names: Sequence[str] | None
) -> list[str] | None:
    """Class names by the number that a network gives them: its own, else the sources', or None
    where these are the very numbers of classes, as folders 0 to 11 are.

    Raises:
        InputError: two names are the same number, such as 1 and 01.
    """
    if label_names:
        return list(label_names)
    names = class_names(sources)
    if names is None or not are_numbers(names):
        return names
    if len(set(map(int, names))) < len(names):
        again = next(a for a, b in itertools.pairwise(names) if int(a) == int(b))
        raise InputError(
            f"{sources[0].path}: class {again!r} is there in two spellings of the same number; "
            "give each class one folder"
        )
    return None


def kept_order(names: list[str] | None, out: str, resume: bool) -> list[str] | None:
    """`names` in the order that a resumed run began with, as its exported student tells: versions
    before 2026-11-30 sorted folders 0 to 11 as text, and an output must not change its class.

    Args:
        out: the run folder.
    """
    if not (resume and names and are_numbers(names)):
        return names
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        exported = json.loads((Path(out) / "student" / "config.json").read_text(encoding="utf-8"))
        before = exported.get("label_names")
        if sorted(before) == sorted(names):
            return list(before)
    return names


def misfit(
    table: ClassTable, sources: Sequence[Source], setting: str, limit: int | None = None
) -> str | None:
    """Why the labels of `sources` are not classes of a network, in words; None where they are, or
    where there are none.

    Args:
        setting: what names the sources, for example `data.val`.
        limit: images whose number is looked at; all by default.
    """
    named = class_names(sources)
    if named and table.names:
        unknown = sorted(set(named) - set(table.names))
        if unknown:
            return (
                f"{setting} has the class {unknown[0]!r}, which is not among the {table.count} of "
                f"{table.who} ({_first(table.names)}); {len(unknown)} of its {len(named)} classes "
                "are not"
            )
    elif named and class_names_for(sources, None) is None:
        if int(named[-1]) >= table.count:
            return (
                f"{setting} has the class {named[-1]!r}, a number, and {table.who} has the classes "
                f"0 to {table.count - 1} without names"
            )
    elif named and len(named) != table.count:
        return (
            f"{setting} names {len(named)} classes ({_first(named)}) and {table.who} has "
            f"{table.count}, whose names it does not say"
        )
    return _beyond(table, sources, setting, limit)


def _beyond(
    table: ClassTable, sources: Sequence[Source], setting: str, limit: int | None
) -> str | None:
    for source in sources:
        if source.class_names or not source.labeled().any():
            continue
        for i in range(min(len(source), limit or len(source))):
            label = source.label(i)
            if isinstance(label, int) and not 0 <= label < table.count:
                return (
                    f"{setting}: label {label} of {source.location(i)} is none of the "
                    f"{table.count} classes of {table.who}, which count from 0 to {table.count - 1}"
                )
    return None


def differ(one: ClassTable, other: ClassTable) -> str | None:
    """Why two networks do not have the same classes in the same order, in words, or None."""
    if one.count != other.count:
        return f"{one.who} has {one.count} classes but {other.who} has {other.count}"
    if not one.names or not other.names or list(one.names) == list(other.names):
        return None
    unknown = sorted(set(one.names) - set(other.names))
    if unknown:
        return f"{one.who} has the class {unknown[0]!r}, which {other.who} does not have"
    i = next(i for i, (a, b) in enumerate(zip(one.names, other.names, strict=True)) if a != b)
    return (
        f"{one.who} and {other.who} have their classes in another order: class {i} is "
        f"{one.names[i]!r} of the one and {other.names[i]!r} of the other"
    )


def _first(names: Sequence[str]) -> str:
    return ", ".join([*names[:SHOWN], *(["..."] if len(names) > SHOWN else [])])
