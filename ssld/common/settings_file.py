"""From a settings file, as people write them, to a tree of plain values; or to one sentence.

YAML, but what surprises is left out: dates are text, 010 is ten, 1e-5 is a number, keys are the
text that was typed (`off`, `0`) and are there once, and there are no tags. Foreign files are
bounded before anything is built from them: bytes, depth, values after anchors are expanded.

`base: OTHER.yaml` at the top of a file, relative to it, is one level of inheritance: the file then
says only what differs.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import yaml

from ssld.common.errors import InputError

MOST_BYTES = 2**20
"""Of a file: a thousand times a recipe. PyYAML takes 20 seconds for as many."""
MOST_NODES = 100_000
"""Values of a file with all anchors expanded: a line of a hundred bytes can stand for 1e9."""
SHOWN = 60
"""Characters of a foreign value in a message."""
_TAG = "tag:yaml.org,2002:"
_KINDS = {"null": "null", "bool": "true or false", "int": "a whole number", "float": "a number"}
_PLAIN = {_TAG + name for name in (*_KINDS, "str", "seq", "map")}


class SettingsLoader(yaml.SafeLoader):
    """YAML as the header of this file says.

    Raises:
        InputError: a key that is no text or there twice, a tag, a value that is not of its tag, too
            many values.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            count_values(node, {})
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except InputError:
            raise
        except (ValueError, LookupError) as error:  # `!!int x`, or 5,000 digits
            kind = _KINDS.get(node.tag.removeprefix(_TAG), "a value")
            raise InputError(f"{_line(node)}: {shortened(node.value)} is not {kind}") from error

    def construct_yaml_int(self, node: Any) -> int:
        return int(self.construct_scalar(node).replace("_", ""))

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise InputError(f"{_line(key)}: a key is a list or a mapping; give `name: value`")
        keys = [key.value for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1] if len(set(keys)) < len(keys) else []
        if twice:
            line = node.start_mark.line + 1
            raise InputError(f"{twice[0]!r} is there twice in the lines from {line} on; give one")
        self.flatten_mapping(node)
        pairs = ((key.value, self.construct_object(x, deep=True)) for key, x in node.value)
        return dict(pairs)


_SIGNED = list("-+0123456789")
for _name, _pattern, _first in (
    ("bool", r"(?:yes|no|true|false|on|off)", list("yYnNtTfFoO")),
    ("int", r"[-+]?[0-9][0-9_]*", _SIGNED),
    ("float", r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)e[-+]?[0-9]+", [*_SIGNED, "."]),
    ("float", r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)", [*_SIGNED, "."]),
    ("float", r"(?:[-+]?\.inf|\.nan)", ["-", "+", "."]),
    ("null", r"(?:~|null|)", ["~", "n", "N", ""]),
    ("merge", r"<<", ["<"]),
):
    _whole = re.compile(_pattern + r"\Z", re.IGNORECASE)
    SettingsLoader.add_implicit_resolver(_TAG + _name, _whole, _first)
SettingsLoader.add_constructor(_TAG + "int", SettingsLoader.construct_yaml_int)


def _line(node: Any) -> str:
    return f"line {node.start_mark.line + 1}"


def count_values(node: Any, known: dict[int, int]) -> int:
    """Values below `node`, each anchor as often as it is named.

    Args:
        known: of nodes by id; 0 while a node is being counted.
    """
    if id(node) in known:
        if not known[id(node)]:
            raise InputError(f"{_line(node)}: a value holds itself; write it out")
        return known[id(node)]
    known[id(node)] = 0
    if node.tag not in _PLAIN:
        tag = node.tag.replace(_TAG, "!!")
        raise InputError(f"{_line(node)}: settings know no tag {shortened(tag)}; leave it out")
    below = [] if isinstance(node, yaml.ScalarNode) else node.value
    below = [x[1] if isinstance(x, tuple) else x for x in below]
    total = 1 + sum(count_values(x, known) for x in below)
    if total > MOST_NODES:
        raise InputError(f"{_line(node)}: more than {MOST_NODES:,} values with anchors expanded")
    known[id(node)] = total
    return total


def parsed(text: str) -> Any:
    """What YAML, or JSON, says.

    Raises:
        InputError: it is neither, or too deep or too much.
    """
    if text.lstrip()[:1] in ("{", "["):  # ours, perhaps; YAML reads JSON's escapes of emoji wrongly
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass
    try:
        return yaml.load(text, SettingsLoader)
    except yaml.MarkedYAMLError as error:
        message = " ".join(f"{error.context or ''} {error.problem or ''}".split())
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        hint = "; indent with spaces" if r"'\t'" in message else ""
        raise InputError(f"not valid YAML: {message}{where}{hint}") from error
    except yaml.YAMLError as error:  # a character that YAML does not allow
        raise InputError(f"not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise InputError("not valid YAML: brackets or lines are nested too deeply") from error


BASE = "base"
"""The key that names the file of which another one says what differs."""


def read_settings(file: Path) -> dict[str, Any]:
    """What a settings file says, on top of its `base` if it names one; `~/x` is in the home folder.

    Raises:
        InputError: there is none, or it is not YAML, or no settings, or a value that no setting may
            have; a base of which this is so, or that has one itself.
    """
    settings = _read(file)
    if BASE not in settings:
        return settings
    base = settings.pop(BASE)
    if not isinstance(base, str) or not base:
        raise InputError(f"{file}: {BASE} is {shortened(base)}: name one settings file")
    try:
        inherited = _read(file.parent / base)
    except InputError as error:
        raise InputError(f"{file}, {BASE}: {error}") from error
    if BASE in inherited:
        raise InputError(
            f"{file}, {BASE}: {file.parent / base} has a {BASE} itself: name a file without one, "
            "or write the settings out"
        )
    return merged(inherited, settings)


def written_out(file: Path) -> str:
    """The text of a settings file; of one with a `base`, all of its settings as YAML."""
    text = text_of(file)
    if BASE not in (parsed(text) or {}):
        return text
    return yaml.safe_dump(read_settings(file), sort_keys=False, allow_unicode=True)


def merged(base: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` on top of `base`: mappings are merged, anything else is replaced; null in the
    place of a mapping leaves it out."""
    result = dict(base)
    for name, value in settings.items():
        inherited = result.get(name)
        if isinstance(inherited, dict) and value is None:
            del result[name]
        elif isinstance(inherited, dict) and isinstance(value, dict):
            result[name] = merged(inherited, value)
        else:
            result[name] = value
    return result


def _read(file: Path) -> dict[str, Any]:
    try:
        content = parsed(text_of(file))
    except InputError as error:
        message = str(error)
        is_about = (
            f"{file} is {message}" if message.startswith("not valid YAML") else f"{file}: {message}"
        )
        raise InputError(is_about) from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds no settings; give `name: value` lines")
    try:
        return tidied(content)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def text_of(file: Path) -> str:
    """What a settings file is, in UTF-8 or, with a mark at its start, UTF-16.

    Raises:
        InputError: it cannot be read or is too long; the sentence goes on after its name.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(MOST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError("no such file; give a YAML recipe") from error
    except IsADirectoryError as error:
        raise InputError("is a folder; give a YAML file") from error
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        message = getattr(error, "strerror", None) or error
        raise InputError(f"cannot be read ({message})") from error
    if len(data) > MOST_BYTES:
        raise InputError(f"more than {MOST_BYTES:,} bytes; that is no file of settings")
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"not valid YAML: line {line} has the byte 0x{data[error.start]:02x}, which is no "
            f"{'UTF-16' if wide else 'UTF-8'}; save the file as UTF-8"
        ) from error


def tidied(value: Any, key: str = "") -> Any:
    """A setting, or a tree of them, with `~/` as the home folder.

    Args:
        value: trees and lists are made anew, dataclasses are changed in place.
        key: its full name.

    Raises:
        InputError: a number that is not finite or beyond 64 bits, or a control character.
    """
    if isinstance(value, dict):
        return {name: tidied(x, f"{key}.{name}" if key else f"{name}") for name, x in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(tidied(x, key) for x in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            name = f"{key}.{field.name}" if key else field.name
            object.__setattr__(value, field.name, tidied(getattr(value, field.name), name))
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{key} is {value}: give a finite number")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InputError(f"{key} is beyond 64 bits: give a smaller number")
    return _tidied_text(value, key) if isinstance(value, str) else value


_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_ANY_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def _tidied_text(text: str, key: str) -> str:
    is_path = key.rpartition(".")[2] == "out"
    if not text and (is_path or key.startswith("data.")):
        raise InputError(f"{key} is empty: name it, or leave it out")
    match = (_ANY_CONTROL if is_path else _CONTROL).search(text)
    if match:
        raise InputError(
            f"{key} is {shortened(text)}: it holds the control character "
            f"{match.group()!r}; leave it out"
        )
    parts = re.split(r"(::|^local-dir:)", text)  # annotations::images, folder::split
    return "".join(_at_home(part, key) for part in parts)


def _at_home(path: str, key: str) -> str:
    if not re.match(r"~(?:$|[\w.-]*/)", path):
        return path
    result = os.path.expanduser(path)
    if result == path and path[:2] in ("~", "~/"):
        raise InputError(f"{key} is {shortened(path)}, but there is no home folder; write it out")
    return result


def shortened(text: Any) -> str:
    """A foreign value for a message: quoted, one line, not too long."""
    message = text if isinstance(text, str) else str(text)
    return repr(message if len(message) <= SHOWN else f"{message[:SHOWN]}...")
