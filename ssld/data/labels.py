"""Class names and numbers: which a source has, whether they are a network's, and how a label
becomes a class number. One rule, and one sentence per kind of misfit, for all commands."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from ssld.common.errors import InputError
from ssld.data.imagenet import ids_of
from ssld.data.source import Source

TRANSFER = "`ssld transfer` trains a new classifier for other classes on this backbone"
NAMES_SHOWN = 3


class HasClasses(Protocol):
    """A network (`Classifier` or `Teacher`), as far as its classes are asked for."""

    @property
    def num_classes(self) -> int: ...

    @property
    def label_names(self) -> Sequence[str] | None: ...


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


NO_CLASSES = ClassTable("a student of features alone", 0, None)


class LabelIndex:
    """Class names or numbers -> class numbers.

    Args:
        names: all class names in the network's order, or None where labels are numbers, maybe
            as text.
        strict: an unknown label is an error; otherwise it is -1 and counts nowhere.
    """

    def __init__(
        self, names: Sequence[str] | None, num_classes: int, *, strict: bool = True
    ) -> None:
        self.numbers = {name: i for i, name in enumerate(names)} if names is not None else None
        self.num_classes = num_classes
        self.strict = strict

    def __call__(self, label: str | int | None) -> int:
        """Class number, -1 for None.

        Raises:
            InputError: a strict index does not know the label.
        """
        if label is None:
            return -1
        number = label
        if isinstance(label, str):
            if self.numbers is not None:
                number = self.numbers.get(label, -1)
            elif label.isascii() and label.isdigit():
                number = int(label)
        if isinstance(number, int) and 0 <= number < self.num_classes:
            return number
        if self.strict:
            raise InputError(
                f"label {label!r} is not one of the {self.num_classes} classes; check the labels "
                "against the network's classes"
            )
        return -1


def class_order(names: Iterable[str]) -> list[str]:
    """Class names sorted, as numbers where all are: 10 is ten."""
    ordered = sorted(names)
    return sorted(ordered, key=int) if are_numbers(ordered) else ordered


def are_numbers(names: Iterable[str]) -> bool:
    """Whether all class names are class numbers, as ImageNetV2 has them, maybe zero-padded."""
    return all(re.fullmatch(r"[0-9]{1,9}", name) for name in names)


def table_of(who: str, network: HasClasses) -> ClassTable:
    """The classes of a network that a sentence calls `who`."""
    return ClassTable(who, network.num_classes, network.label_names)


def _as_called(table: ClassTable, sources: Sequence[Source]) -> ClassTable:
    """The same classes as the folders of `sources` call them: ImageNet's by WordNet's ids."""
    ids = ids_of(class_names(sources) or (), table.count, table.names)
    return replace(table, names=ids) if ids else table


def class_names(sources: Sequence[Source]) -> list[str] | None:
    """All class names of the sources, or None where classes are numbers or absent.

    They are in the order that a source states for all of them, else in `class_order`.
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


def has_labels(sources: Iterable[Source]) -> bool:
    """Whether any image of the sources has a label."""
    return any(source.labeled().any() for source in sources)


def require_labels(setting: str, sources: Iterable[Source]) -> None:
    """
    Raises:
        InputError: one of the sources has no label.
    """
    for source in sources:
        if not has_labels([source]):
            raise InputError(
                f"{setting} {source.path} has no labels; give one subfolder per class, or a "
                "manifest or shards with labels"
            )


def any_known(sources: Iterable[Source], index: LabelIndex | None) -> bool:
    """Whether `index` knows the label of any image."""
    return index is not None and any(
        index(source.label(i)) >= 0 for source in sources for i in range(len(source))
    )


def index_for(sources: Sequence[Source], network: HasClasses, role: str) -> LabelIndex:
    """How labels become class numbers: by the network's own class names where it has them.

    Args:
        role: `student` or `model`, for the message.

    Raises:
        InputError: they are not the network's classes; see `misfit`.
    """
    where = ", ".join(source.path for source in sources)
    table = _as_called(table_of(f"the {role}", network), sources)
    problem = misfit(table, sources, where)
    if problem:
        named, advice = class_names(sources), TRANSFER
        if role == "student" and named and len(named) != network.num_classes:
            advice = f"student.num_classes {len(named)} makes it a new classifier; {TRANSFER}"
        raise InputError(
            f"{problem}: rename the folders, or give {role} and labels of the same classes "
            f"(numbers in a manifest count as the {role} does, not as the folders); {advice}"
        )
    return LabelIndex(class_names_for(sources, table.names), table.count)


def known_index(sources: Sequence[Source], network: HasClasses) -> LabelIndex:
    """The same of labels that may be others than the network's classes: those are -1, and all are
    where the sources name another number of classes than a network without names has."""
    table = _as_called(table_of("the network", network), sources)
    names = class_names_for(sources, table.names)
    fits = table.names or len(names or ()) == table.count
    return LabelIndex(names if fits or not names else [], table.count, strict=False)


def unknown_labels(
    sources: Sequence[Source], network: HasClasses, limit: int | None = None
) -> str | None:
    """Why the labels of `sources` cannot be compared with a teacher's classes, or None.

    Args:
        limit: see `misfit`.
    """
    if not network.num_classes:
        return "it has no classifier"
    if not has_labels(sources):
        return "no labeled images are given"
    where = ", ".join(source.path for source in sources)
    return misfit(table_of("the teacher", network), sources, where, limit)


def misfit(
    table: ClassTable, sources: Sequence[Source], setting: str, limit: int | None = None
) -> str | None:
    """Why the labels of `sources` are not classes of a network, in words; None where they are, or
    where there are none.

    Args:
        setting: what names the sources, for example `data.val`.
        limit: images whose number is looked at; all by default.
    """
    named, table = class_names(sources), _as_called(table, sources)
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
        if source.class_names or not has_labels([source]):
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
    return ", ".join([*names[:NAMES_SHOWN], *(["..."] if len(names) > NAMES_SHOWN else [])])
