"""What the keypoints of a set are: their names, which change places in a mirror, which are joined
by a line.

A left eye in a mirror is a right one, and no loss says so when it stays a left one. So pairs are
taken from the file where it has them, else from the names, and the report says which.

The file's are pairs of names or of numbers (`flip_pairs`, `symmetry`), or for each keypoint the
number of its partner (`flip_idx` of ultralytics, `flip_indices` of mmpose, both from 0 on), of the
category, of `info`, or beside it. Names are of one pair where `left` and `right`, or an L and an R
that begin a word or end one in capitals, are all that they differ by: `left_eye` and `right_eye`,
`LEye`, `ear_l`, `kneeL1`, `FL_wheel`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from downstream.dense.texts import shown
from ssld.common.errors import InputError

Pairs = tuple[tuple[int, int], ...]

PAIRS, PARTNERS = ("flip_pairs", "symmetry"), ("flip_idx", "flip_indices")
"""Keys of a file: a list of pairs, or a partner for each keypoint."""
WORD = re.compile("left|right", re.IGNORECASE)
TOKEN = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
"""Of `lEye`, `LEye`, `paw1LH`: l and Eye, L and Eye, paw and LH."""
OTHER = {"l": "r", "r": "l", "L": "R", "R": "L"}
ALONE = re.compile(r"(?<![A-Za-z0-9])[LRlr](?![A-Za-z0-9])")
"""A letter that says a side for certain: L1 may be a vertebra."""


@dataclass(frozen=True)
class Keypoints:
    """The k keypoints of every object of a set."""

    names: tuple[str, ...]
    flip_pairs: Pairs = ()
    """Numbers of those that change places in a mirror, such as a left and a right eye."""
    skeleton: Pairs = ()
    """Numbers of those that are joined by a line when they are drawn."""

    def mirrored(self) -> list[int]:
        """By number, whose place a keypoint has in a mirror."""
        order = list(range(len(self.names)))
        for a, b in self.flip_pairs:
            order[a], order[b] = b, a
        return order

    def sides(self) -> list[str]:
        """By number `left`, `right`, or nothing where a keypoint is in no pair. Where names do not
        tell, the first of a pair is the left one."""
        found = [""] * len(self.names)
        for pair in self.flip_pairs:
            first, second = (_is_left(self.names[i]) for i in pair)
            left, right = pair[::-1] if second and not first else pair
            found[left], found[right] = "left", "right"
        return found


def find_pairs(
    names: Sequence[str], places: Sequence[tuple[str, Mapping[str, Any]]]
) -> tuple[Pairs, list[str]]:
    """Those that change places in a mirror, and what the report should say of it.

    Args:
        places: where a file may have them, and how to name that.

    Raises:
        InputError: what the file has are no pairs of `names`, or two places differ.
    """
    by_name = pairs_by_name(names)
    declared = [
        (f"{where}.{key}", read(names, content[key], f"{where}.{key}"))
        for where, content in places
        for keys, read in ((PAIRS, _declared), (PARTNERS, _partners))
        for key in keys
        if content.get(key) is not None
    ]
    if not declared:
        return by_name, _describe(names, by_name, "by their names" if by_name else "")
    where, pairs = declared[0]
    for other, theirs in declared[1:]:
        if theirs != pairs:
            raise InputError(
                f"{where} pairs {_listed(names, pairs)}, but {other} {_listed(names, theirs)}; "
                "mend one"
            )
    place = where.rpartition(": ")[2].rpartition("/")[2]  # without the file's path
    remarks = _describe(names, pairs, f"by {place}")
    if differing := [pair for pair in by_name if pair not in pairs]:
        remarks.append(
            f"by their names {_listed(names, differing)} would be pairs, which the file denies"
        )
    return pairs, remarks


def _describe(names: Sequence[str], pairs: Pairs, source: str) -> list[str]:
    remarks = [
        f"in a mirror these keypoints change places, {source}: {_listed(names, pairs)}"
        if pairs
        else "no keypoint changes places in a mirror; if some are left and right ones, give "
        "info.flip_pairs, or set augment.flip to 0"
    ]
    paired = {i for pair in pairs for i in pair}
    lonely = [
        name
        for i, name in enumerate(names)
        if i not in paired and (WORD.search(name) or ALONE.search(name))
    ]
    if lonely:
        remarks.append(
            f"keypoints of a side by their names, without a partner in a mirror: "
            f"{', '.join(map(shown, lonely))}"
        )
    return remarks


def _listed(names: Sequence[str], pairs: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{names[a]} and {names[b]}" for a, b in pairs) or "none"


def pairs_by_name(names: Sequence[str]) -> Pairs:
    """Pairs of numbers, ascending; a name that two others could be the partner of has none."""
    numbers = {name: i for i, name in enumerate(names)}
    partners: dict[int, set[int]] = {}
    for i, name in enumerate(names):
        found = next((numbers[x] for x in _others(name) if x in numbers and x != name), None)
        if found is not None:
            partners.setdefault(i, set()).add(found)
            partners.setdefault(found, set()).add(i)
    return tuple(
        sorted(
            (i, j)
            for i, found in partners.items()
            for j in found
            if i < j and len(found) == 1 == len(partners[j])
        )
    )


def _is_left(name: str) -> bool:
    return any(True for _ in _others(name))


def _others(name: str) -> Iterator[str]:
    """What the partner of a left one may be called: all sides changed, else one left one."""
    words = [match.span() for match in WORD.finditer(name)]
    yield from _changed(name, words, _other_word)
    letters = []
    for match in TOKEN.finditer(name):
        first, last = match.start(), match.end() - 1
        ends = {first, last} if match[0].isupper() else {first}
        letters += [(i, i + 1) for i in sorted(ends) if name[i] in OTHER]
    yield from _changed(name, letters, OTHER.__getitem__)


def _changed(name: str, spans: list[tuple[int, int]], other: Callable[[str], str]) -> Iterator[str]:
    """`name` with the sides at `spans` changed, if one of them is left."""
    left = [span for span in spans if name[span[0]] in "lL"]
    for chosen in (spans, *([span] for span in left)) if left else ():
        changed = name
        for start, end in reversed(chosen):
            changed = changed[:start] + other(changed[start:end]) + changed[end:]
        yield changed


def _other_word(word: str) -> str:
    other = "right" if word.lower() == "left" else "left"
    if word.isupper():
        return other.upper()
    return other.capitalize() if word[0].isupper() else other


Ends = tuple[str, str] | tuple[int, int]


def _declared(names: Sequence[str], value: Any, where: str) -> Pairs:
    """Of a list of pairs of names, or of numbers.

    Raises:
        InputError: they are none.
    """
    if not isinstance(value, list):
        raise InputError(f"{where} is {shown(value)}; give a list of pairs of names")
    ends: list[Ends] = []
    for pair in value:
        found = _ends(names, pair)
        if found is None or found[0] == found[1]:
            raise InputError(
                f"{where} has {shown(pair)}, which is no pair of the {len(names)} keypoints; give "
                "two of their names"
            )
        ends.append(found)
    named = [(names.index(a), names.index(b)) for a, b in ends if isinstance(a, str)]
    plain = [pair for pair in ends if isinstance(pair[0], int)]
    return _distinct(names, named + _counted_from_0(names, plain, where), where)


def _ends(names: Sequence[str], pair: Any) -> Ends | None:
    """A pair of names, or of numbers as written; None where it is neither."""
    if not isinstance(pair, list) or len(pair) != 2:
        return None
    a, b = pair
    if isinstance(a, str) and isinstance(b, str) and a in names and b in names:
        return a, b
    count = len(names)
    if type(a) is int and type(b) is int and 0 <= min(a, b) and max(a, b) <= count:
        return a, b
    return None


def _counted_from_0(names: Sequence[str], numbers: Sequence[Any], where: str) -> list[Any]:
    """Pairs that may count from 0 or from 1 on: 0, the last number or the names tell."""
    flat = {x for pair in numbers for x in pair}
    readings = [
        [(a - first, b - first) for a, b in numbers]
        for first in (0, 1)
        if (0 not in flat or first == 0) and (len(names) not in flat or first == 1)
    ]
    if numbers and len(readings) == 2:
        by_name = set(pairs_by_name(names))
        readings = [x for x in readings if {(min(p), max(p)) for p in x} == by_name]
    elif not numbers:
        return []
    if len(readings) != 1:
        raise InputError(
            f"{where} has numbers that may count the {len(names)} keypoints from 0 or from 1 on; "
            "give pairs of names"
        )
    return readings[0]


def _partners(names: Sequence[str], value: Any, where: str) -> Pairs:
    """Of a list of each one's partner, or itself, from 0 on.

    Raises:
        InputError: it is none.
    """
    count = len(names)
    known = isinstance(value, list) and len(value) == count
    if not known or not all(type(x) is int and 0 <= x < count for x in value):
        raise InputError(
            f"{where} is {shown(value)}; give for each of the {count} keypoints the number, from 0 "
            "on, of the one whose place it takes in a mirror"
        )
    for i, j in enumerate(value):
        if value[j] != i:
            raise InputError(
                f"{where}: {names[i]} takes the place of {names[j]}, but that one the place of "
                f"{names[value[j]]}; mend it"
            )
    return tuple((i, j) for i, j in enumerate(value) if i < j)


def _distinct(names: Sequence[str], pairs: list[tuple[int, int]], where: str) -> Pairs:
    """Sorted; a pair that is there twice, or both ways round, is one.

    Raises:
        InputError: a keypoint is in two pairs.
    """
    ordered = sorted({(min(pair), max(pair)) for pair in pairs})
    flat = [x for pair in ordered for x in pair]
    again = [x for x in flat if flat.count(x) > 1]
    if again:
        raise InputError(f"{where}: {names[again[0]]!r} is in two pairs; give it one partner")
    return tuple(ordered)


def read_skeleton(names: Sequence[str], value: Any) -> tuple[Pairs, list[str]]:
    """Of COCO's `skeleton`, pairs of numbers from 1 on, and what the report should say of it.

    It is only drawn: pairs of names, or from 0 on, are taken as such, what is none is left out.
    """
    if value is None or value == []:
        return (), []
    given = value if isinstance(value, list) else [value]
    ends = [_ends(names, pair) for pair in given]
    plain = {x for pair in ends if pair and type(pair[0]) is int for x in pair}
    first = 0 if 0 in plain else 1
    lines = [
        tuple(names.index(x) if isinstance(x, str) else x - first for x in pair)
        for pair in ends
        if pair is not None
    ]
    kept = [(a, b) for a, b in lines if a != b and max(a, b) < len(names)]
    remarks = ["skeleton counts keypoints from 0 on, not from 1 on as COCO's does"] * (not first)
    if len(kept) < len(given):
        remarks.append(
            f"lines of skeleton that join no two keypoints, left out: {len(given) - len(kept)} of "
            f"{len(given)}"
        )
    return tuple(kept), remarks


def require_visibilities(values: np.ndarray, where: Callable[[int], str]) -> None:
    """Refuse what is not 0 (not labeled), 1 (hidden) or 2 (visible), as what it means differs: 3 is
    "not labeled" in AI Challenger's sets, "hidden" in OCHuman's, and .87 a prediction's score.

    Args:
        values: float64 [m, k].
        where: row -> file, entry and image.

    Raises:
        InputError: naming the first.
    """
    odd = ~np.isin(values, (0, 1, 2))
    rows = np.flatnonzero(odd.any(1))
    if len(rows):
        row, column = int(rows[0]), int(np.flatnonzero(odd[rows[0]])[0])
        more = f" (and {len(rows) - 1} more objects are like it)" if len(rows) > 1 else ""
        raise InputError(
            f"{where(row)}: the visibility of keypoint {column + 1} is {values[row, column]:g}"
            f"{more}; give 0 (not labeled), 1 (hidden) or 2 (visible)"
        )
