"""What all frozen dataclasses of settings share: limits of numbers, and settings as plain trees."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Limits:
    """Of a number, or of each number of a list."""

    hold: Callable[[Any], bool]
    words: str
    """What is allowed, after "give"."""


def one_of(names: Mapping[str, object]) -> Limits:
    """Of a setting that is a key of a registry, which may have grown since."""
    return Limits(names.__contains__, f"one of {', '.join(names)}")


# jsonargparse has types of these names, but a type checker takes none of them for a type, and in
# `PositiveInt | None` its sentence for 0 is "give null".
PositiveInt = Annotated[int, Limits(lambda x: x > 0, "a number above 0")]
PositiveFloat = Annotated[float, Limits(lambda x: x > 0, "a number above 0")]
NonNegativeInt = Annotated[int, Limits(lambda x: x >= 0, "0 or more")]
NonNegativeFloat = Annotated[float, Limits(lambda x: x >= 0, "0 or more")]
Share = Annotated[float, Limits(lambda x: 0 <= x <= 1, "a share between 0 and 1")]
ShareBelowOne = Annotated[float, Limits(lambda x: 0 <= x < 1, "0 <= share < 1")]
Probability = Annotated[float, Limits(lambda x: 0 <= x <= 1, "a probability")]
OneOrSeveral = Annotated[str | list[str], "one is made a list"]


@dataclass(frozen=True)
class Settings:
    """A group of settings. Its limits hold however it is made: parsed, or in Python.

    Raises:
        ValueError: a number is outside of its annotated limits.
    """

    section: ClassVar[str] = ""
    """The name under which a run's settings have it, for messages: `optimizer.`"""

    def __init_subclass__(cls, section: str | None = None) -> None:
        if section is not None:
            cls.section = f"{section}."

    def __post_init__(self) -> None:
        for name, limits in _limits_of(type(self)):
            value = getattr(self, name)
            if isinstance(limits, Limits):
                values = value if isinstance(value, list | tuple) else [value]
                require(
                    all(x is None or limits.hold(x) for x in values),
                    f"{self.section}{name} is {value}: give {limits.words}",
                )
            else:
                object.__setattr__(self, name, [value] if isinstance(value, str) else list(value))


@functools.cache
def _limits_of(config_class: type) -> list[tuple[str, object]]:
    hints = get_type_hints(config_class, include_extras=True)
    return [(name, result) for name, hint in hints.items() for result in _annotations(hint)]


def _annotations(hint: object) -> Iterator[object]:
    if get_origin(hint) is Annotated:
        yield from get_args(hint)[1:]
    elif get_origin(hint) is not Literal:
        for inner in get_args(hint):
            yield from _annotations(inner)


def plain(config: Any) -> dict[str, Any]:
    """As YAML and JSON know it: lists for tuples; without what is of one start alone."""
    settings = json.loads(json.dumps(dataclasses.asdict(config)))
    return {**settings, "resume": False, "overwrite": False, "allow_changes": []}


def default_settings(config_class: Any) -> dict[str, Any]:
    """Of a class of settings those that need not be given, by their full names."""
    known: dict[str, Any] = {}
    for x in dataclasses.fields(config_class):
        value: Any = x.default
        if x.default_factory is not dataclasses.MISSING:
            value = x.default_factory()
        if value is not dataclasses.MISSING:
            known[x.name] = dataclasses.asdict(value) if isinstance(value, Settings) else value
    return flat(json.loads(json.dumps(known)))


def under(key: str, names: Sequence[str]) -> bool:
    """Whether `key` is one of the settings or in one of the groups."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their full names, `a.b.c`."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def require(holds: bool, message: str) -> None:
    """Raise ValueError with `message` unless something holds."""
    if not holds:
        raise ValueError(message)


def require_effect(settings: Settings, names: Sequence[str], holds: bool, why: str) -> None:
    """Refuse settings that are not their defaults unless what gives them an effect holds.

    Args:
        why: they have none, and what to give instead.
    """
    for name in names:
        value = getattr(settings, name)
        usual = value == getattr(type(settings), name)
        require(usual or holds, f"{settings.section}{name} is {value}, but {why}")


def require_path(checkpoint: str | None, setting: str, name: str) -> None:
    """Refuse an id where weights on disk belong, before anything is imported for it."""
    require(
        not re.match(r"(local-dir|hf[-_]hub):", checkpoint or ""),
        f"{setting} is {checkpoint!r}, but takes a file or a folder: give this as {name}",
    )


Precision = Literal["fp32", "bf16", "fp16"]
IN_SHORT_HELP = {"short_help": True}
"""Metadata of a field: `--help` shows it, as `--help all` shows every one. What must be given needs
no such mark, nor do the fields of a command that marks none."""
REFUSED = "refused"
"""Key of the metadata of a group: names in it that the command refuses, and no help shows."""
