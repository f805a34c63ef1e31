"""The file of an ablation -> its trials: every combination of the values of the axes."""

from __future__ import annotations

import contextlib
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

from ssld.cli.commands import STAGES
from ssld.common.errors import InputError
from ssld.common.settings import flat
from ssld.common.settings_file import parsed, tidied
from ssld.recipe.config import LENGTHS, sections

SEED = "seed"
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

    @property
    def places(self) -> set[tuple[str, str]]:
        """All settings that it changes, each with its stage."""
        return {place for one in self.values for place in one.settings}


@dataclass(frozen=True)
class Trial:
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
    trials: list[Trial]

    @property
    def title(self) -> str:
        return Path(self.file).stem

    @property
    def compared(self) -> list[Axis]:
        """The axes but that of the seeds."""
        return [axis for axis in self.axes if axis.name != SEED]

    def folder(self, trial: Trial) -> Path:
        return self.out / "cells" / trial.name


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def show(value: Any) -> str:
    """A value as one would type it."""
    if isinstance(value, float) and math.isfinite(value):
        small = 0 < abs(value) < 1e-3
        plain = format(Decimal(repr(value)).normalize(), "e") if small else repr(value)
        return re.sub(r"\.0$|(?<=e)\+", "", plain)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def build(path: str, tree: dict[str, Any], out: str | None, overrides: Sequence[str]) -> Ablation:
    """From what the file at `path` holds to an ablation; nothing is written.

    Args:
        out: instead of the file's.
        overrides: `name=value` for all trials.

    Raises:
        InputError: a key that is unknown, or missing; an axis that is empty, names something twice,
            or sets what another one does.
    """
    folder, settings = sections(path, tree, out, "grid")
    stages = list(settings)
    base: Settings = {}
    for stage in stages:
        _put(base, {(stage, key): x for key, x in flat(settings[stage]).items()})
    axes = _axes(path, tree.get("grid"), stages)
    _put(base, _overrides(path, overrides, stages, axes))
    return Ablation(path, folder, stages, axes, list(_trials(path, stages, base, axes)))


def _trials(path: str, stages: list[str], base: Settings, axes: list[Axis]) -> Iterator[Trial]:
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
        yield Trial(name, placed, _nested(path, stages, settings))


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


def _axes(path: str, grid: Any, stages: list[str]) -> list[Axis]:
    if not isinstance(grid, dict) or not grid:
        raise InputError(f"{path}: `grid` is missing or empty; give `setting: [value, ...]` lines")
    axes = [_axis(f"{path}: grid.{name}", name, given, stages) for name, given in grid.items()]
    _require_apart(path, axes)
    return axes


def _axis(where: str, name: str, given: Any, stages: list[str]) -> Axis:
    """
    Args:
        given: values of the setting that the name is, or settings by label.
    """
    if isinstance(given, list) and given:
        place = _place(where, name, stages)
        values = [Value(value, {place: value}) for value in given]
        name = name.removeprefix(f"{stages[0]}.")
    elif isinstance(given, dict) and given:
        values = [_labelled(f"{where}.{label}", label, x, stages) for label, x in given.items()]
    else:
        raise InputError(
            f"{where} is {show(given)}; give a list of values, or `label: {{setting: value}}` lines"
        )
    if not any(value.settings for value in values):
        raise InputError(f"{where} sets nothing; give its labels `{{setting: value}}`")
    for a, b in itertools.combinations(values, 2):
        if file_name(a.value) == file_name(b.value) or a.settings == b.settings:
            raise InputError(f"{where}: {a.text} and {b.text} are the same; give each value once")
    return Axis(name, values)


def _labelled(where: str, label: str, settings: Any, stages: list[str]) -> Value:
    if not isinstance(settings, dict | None):
        raise InputError(
            f"{where} is {show(settings)}; give `setting: value` lines, or a list of values to an "
            "axis that is itself a setting"
        )
    return Value(label, {_place(where, key, stages): x for key, x in flat(settings or {}).items()})


def _place(where: str, key: str, stages: list[str]) -> tuple[str, str]:
    """The stage and the name in it of a setting."""
    stage, _, rest = key.partition(".")
    if stage not in STAGES:
        return stages[0], key
    if not rest:
        raise InputError(f"{where}: {key} is a stage; name a setting of it, as in {key}.epochs")
    if stage not in stages:
        raise InputError(f"{where}: {key} sets a stage that is not there; add `{stage}: {{}}`")
    return stage, rest


def _require_apart(path: str, axes: list[Axis]) -> None:
    """
    Raises:
        InputError: two axes set the same.
    """
    for one, other in itertools.combinations(axes, 2):
        for place in sorted(other.places):
            if any(_collide(place, x) for x in one.places):
                raise InputError(
                    f"{path}: grid.{one.name} and grid.{other.name} both set {'.'.join(place)}; "
                    "let one axis do it"
                )
        if one.name == other.name:
            raise InputError(f"{path}: grid.{one.name} is there twice; give it once")


def _collide(place: tuple[str, str], other: tuple[str, str]) -> bool:
    """Whether two settings are the same, one holds the other, or both are lengths."""
    (stage, key), (other_stage, other_key) = place, other
    within = f"{key}.".startswith(f"{other_key}.") or f"{other_key}.".startswith(f"{key}.")
    return stage == other_stage and (within or LENGTHS.get(key) == other_key)


def _overrides(
    path: str, overrides: Sequence[str], stages: list[str], axes: list[Axis]
) -> Settings:
    settings: Settings = {}
    for word in overrides:
        name, _, text = word.partition("=")
        place = _place(f"--{name}", name, stages)
        alike = (place, (place[0], LENGTHS.get(place[1], "")))
        axis = next((axis for axis in axes if not axis.places.isdisjoint(alike)), None)
        if axis:
            raise InputError(
                f"--{name} is on the grid of {path} (grid.{axis.name}); change it there"
            )
        value = text
        with contextlib.suppress(InputError):  # as it is where it is no YAML
            value = parsed(text)
        settings[place] = tidied(value, name)
    return settings
