"""The file of an ablation -> its cells: every combination of the values of the axes."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from ssld.cli.commands import DOWNSTREAM
from ssld.common.errors import InputError, did_you_mean
from ssld.common.settings import flat
from ssld.common.settings_file import parsed, read_settings, tidied

FIRST, LATER = ("distill", "supervised", *DOWNSTREAM), ("finetune", "fix")
SEED = "seed"
LENGTHS = {"epochs": "steps", "steps": "epochs"}
"""Each is given instead of the other."""
Settings = dict[tuple[str, str], Any]
"""{(stage, dotted name): value}"""
NAME_LENGTH = 180


@dataclass(frozen=True)
class Value:
    """A place on an axis."""

    value: Any
    """As the file has it; the label of one that has a name."""
    settings: Settings

    @property
    def text(self) -> str:
        return show(self.value)


@dataclass(frozen=True)
class Axis:
    name: str
    values: list[Value]

    @property
    def numeric(self) -> bool:
        return all(is_number(one.value) for one in self.values)

    @property
    def whole(self) -> bool:
        return all(isinstance(one.value, int) for one in self.values)


@dataclass(frozen=True)
class Cell:
    """A recipe, and where it is on the axes."""

    name: str
    """Of its folder."""
    values: dict[str, Value]
    """By axis, in the order of the file."""
    recipe: dict[str, dict[str, Any]]
    """{stage: its settings}, nested."""

    def others(self, *axes: str) -> tuple[str, ...]:
        """Its place on all axes but these."""
        return tuple(one.text for name, one in self.values.items() if name not in axes)


@dataclass(frozen=True)
class Ablation:
    file: str
    out: Path
    stages: list[str]
    axes: list[Axis]
    cells: list[Cell]

    @property
    def title(self) -> str:
        return Path(self.file).stem

    @property
    def compared(self) -> list[Axis]:
        """The axes but that of the seeds."""
        return [axis for axis in self.axes if axis.name != SEED]

    def folder(self, cell: Cell) -> Path:
        return self.out / "cells" / cell.name


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def show(value: Any) -> str:
    """A value as one would type it."""
    if isinstance(value, float) and math.isfinite(value):
        small = 0 < abs(value) < 1e-3
        plain = format(Decimal(repr(value)).normalize(), "e") if small else repr(value)
        return re.sub(r"\.0$|(?<=e)\+", "", plain)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def read(path: str, out: str | None, overrides: Sequence[str]) -> Ablation:
    """Read an ablation; nothing is written.

    Args:
        out: instead of the file's.
        overrides: `name=value` for all cells.

    Raises:
        InputError: no such file, no YAML; a key that is unknown, or missing; an axis that is empty,
            names something twice, or sets what another one does.
    """
    return build(path, read_settings(Path(path)), out, overrides)


def build(path: str, tree: dict[str, Any], out: str | None, overrides: Sequence[str]) -> Ablation:
    """The same from what the file at `path` holds; see `read`."""
    known = ("out", *FIRST, *LATER, "grid")
    for key in tree:
        if key not in known:
            raise InputError(f"{path}: unknown key {key!r}{_hint(key, known)}")
    stages = [key for key in tree if key in FIRST or key in LATER]
    if not stages or stages[0] not in FIRST or any(key in FIRST for key in stages[1:]):
        raise InputError(
            f"{path}: its stages are {', '.join(stages) or 'none'}; give a section `distill` or "
            "`supervised`, and after it, if you like, `finetune` and `fix`; or one of "
            f"{', '.join(DOWNSTREAM)} alone"
        )
    out = out or tree.get("out")
    if not isinstance(out, str):
        raise InputError(f"{path}: `out` is missing; name a folder there, or give --out")
    base: Settings = {}
    for stage in stages:
        _put(base, {(stage, key): x for key, x in _section(path, tree, stage).items()})
    axes = _axes(path, tree.get("grid"), stages)
    _put(base, _overrides(path, overrides, stages, axes))
    return Ablation(path, Path(out), stages, axes, list(_cells(path, stages, base, axes)))


def _cells(path: str, stages: list[str], base: Settings, axes: list[Axis]) -> Iterator[Cell]:
    names = _short([axis.name for axis in axes])
    for values in itertools.product(*(axis.values for axis in axes)):
        settings = dict(base)
        for one in values:
            _put(settings, one.settings)
        pairs = zip(names, values, strict=True)
        name = ",".join(f"{file_name(short)}={file_name(one.value)}" for short, one in pairs)
        if len(name) > NAME_LENGTH:
            name = f"{name[:NAME_LENGTH]}-{_digest(name)}"
        placed = {axis.name: one for axis, one in zip(axes, values, strict=True)}
        yield Cell(name, placed, _nested(path, stages, settings))


def _short(names: list[str]) -> list[str]:
    """The last two parts of each, as one says little (`loss.name`); all if another has these."""
    ends = [".".join(name.split(".")[-2:]) for name in names]
    return [x if ends.count(x) == 1 else name for x, name in zip(ends, names, strict=True)]


def file_name(value: Any) -> str:
    """A value in the name of a file; a digest tells apart what would read the same."""
    if isinstance(value, list) and all(is_number(x) for x in value):
        return "+".join(map(show, value)) or "none"
    text = show(value)
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:60]
    return safe if safe == text else f"{safe}-{_digest(text)}".lstrip("-")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def _put(settings: Settings, more: Settings) -> None:
    """Add or replace; a length in epochs takes the place of one in steps."""
    for (stage, key), value in more.items():
        if key in LENGTHS and value is not None:
            settings.pop((stage, LENGTHS[key]), None)
        within = [x for x in settings if x[0] == stage and x[1].startswith(f"{key}.")]
        for group in within:  # `student.args` as a whole
            del settings[group]
        settings[stage, key] = value


def _nested(path: str, stages: list[str], settings: Settings) -> dict[str, dict[str, Any]]:
    tree: dict[str, dict[str, Any]] = {stage: {} for stage in stages}
    for (stage, key), value in settings.items():
        *groups, leaf = key.split(".")
        place = tree[stage]
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                raise InputError(f"{path}: {stage}.{key} and {group!r} alone cannot both be set")
        place[leaf] = value
    return tree


def _section(path: str, tree: dict[str, Any], stage: str) -> dict[str, Any]:
    section = tree[stage]
    if section is not None and not isinstance(section, dict):
        raise InputError(f"{path}: {stage} is {show(section)}; give `setting: value` lines")
    return flat(section or {})


def _axes(path: str, grid: Any, stages: list[str]) -> list[Axis]:
    if not isinstance(grid, dict) or not grid:
        raise InputError(f"{path}: `grid` is missing or empty; give `setting: [value, ...]` lines")
    axes = []
    for name, given in grid.items():
        where = f"{path}: grid.{name}"
        if not isinstance(given, list | dict) or not given:
            raise InputError(
                f"{where} is {show(given)}; give a list of values, or `label: {{setting: value}}` "
                "lines"
            )
        values = _listed(where, name, given, stages)
        if isinstance(given, dict):
            values = _labelled(where, given, stages)
        plain = name.removeprefix(f"{stages[0]}.") if isinstance(given, list) else name
        axes.append(Axis(plain, values))
        _check_axis(where, axes[-1])
    _check_apart(path, axes)
    return axes


def _listed(where: str, name: str, given: Any, stages: list[str]) -> list[Value]:
    if isinstance(given, dict):
        return []
    place = _place(where, name, stages)
    return [Value(value, {place: value}) for value in given]


def _labelled(where: str, given: dict[str, Any], stages: list[str]) -> list[Value]:
    values = []
    for label, settings in given.items():
        if settings is not None and not isinstance(settings, dict):
            raise InputError(
                f"{where}.{label} is {show(settings)}; give `setting: value` lines, or a list of "
                "values to an axis that is itself a setting"
            )
        places = {
            _place(f"{where}.{label}", key, stages): x for key, x in flat(settings or {}).items()
        }
        values.append(Value(label, places))
    return values


def _place(where: str, key: str, stages: list[str]) -> tuple[str, str]:
    """The stage and the name in it of a setting."""
    stage, _, rest = key.partition(".")
    if stage in (*FIRST, *LATER) and rest:
        if stage not in stages:
            raise InputError(f"{where}: {key} sets a stage that is not there; add `{stage}: {{}}`")
        return stage, rest
    if stage in (*FIRST, *LATER):
        raise InputError(f"{where}: {key} is a stage; name a setting of it, as in {key}.epochs")
    return stages[0], key


def _check_axis(where: str, axis: Axis) -> None:
    if not any(one.settings for one in axis.values):
        raise InputError(f"{where} sets nothing; give its labels `{{setting: value}}`")
    for a, b in itertools.combinations(axis.values, 2):
        if file_name(a.value) == file_name(b.value) or a.settings == b.settings:
            raise InputError(f"{where}: {a.text} and {b.text} are the same; give each value once")


def _check_apart(path: str, axes: list[Axis]) -> None:
    """No two axes may set the same."""
    seen: dict[tuple[str, str], str] = {}
    for axis in axes:
        mine = {place for one in axis.values for place in one.settings}
        for stage, key in sorted(mine):
            taken = [key, LENGTHS.get(key, key), *_groups(key)]
            found = [seen[stage, x] for x in taken if (stage, x) in seen]
            found += [name for (s, k), name in seen.items() if s == stage and key in _groups(k)]
            if found:
                raise InputError(
                    f"{path}: grid.{found[0]} and grid.{axis.name} both set {stage}.{key}; let one "
                    "axis do it"
                )
        seen |= dict.fromkeys(mine, axis.name)
    names = [axis.name for axis in axes]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"{path}: grid.{twice[0]} is there twice; give it once")


def _groups(key: str) -> list[str]:
    """What holds a setting: `a` and `a.b` of `a.b.c`."""
    parts = key.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _overrides(
    path: str, overrides: Sequence[str], stages: list[str], axes: list[Axis]
) -> Settings:
    found: Settings = {}
    owner = {place: axis.name for axis in axes for one in axis.values for place in one.settings}
    for word in overrides:
        name, _, text = word.partition("=")
        place = _place(f"--{name}", name, stages)
        stage, key = place
        axis = owner.get(place) or owner.get((stage, LENGTHS.get(key, "")))
        if axis:
            raise InputError(f"--{name} is on the grid of {path} (grid.{axis}); change it there")
        found[place] = tidied(_parsed(text), name)
    return found


def _parsed(text: str) -> Any:
    try:
        return parsed(text)
    except InputError:
        return text


def _hint(key: str, known: Sequence[str]) -> str:
    return did_you_mean(key, known, cutoff=0.5) or f"; known: {', '.join(known)}"
