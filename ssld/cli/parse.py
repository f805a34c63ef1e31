"""From command line and YAML to a frozen configuration, and from an exception to one sentence."""

from __future__ import annotations

import difflib
import functools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ssld.cli.commands import STAGES
from ssld.common import streams
from ssld.common.errors import InputError, did_you_mean, one_line
from ssld.common.settings_file import parsed, read_settings, shortened, tidied

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

Config = TypeVar("Config")

SENTENCE = 1500
"""Most characters of a sentence: somebody must read it."""
LENGTHS = ("epochs", "steps")
"""Settings of which a run has exactly one."""
LONGEST = 300
"""Characters of what another package says."""


def parse(
    prog: str,
    config_class: type[Config],
    argv: Sequence[str] | None = None,
    *,
    settings: tuple[str, dict[str, Any]] | None = None,
    defaults: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> Config:
    """Fill `config_class` from `--config F.yaml` and `--a.b value` overrides.

    Args:
        settings: as a `--config` would say them, and where they stand.
        defaults: what is given, {full name: value} -> what holds where nothing is given, nested.

    Raises:
        InputError: an unknown key (naming the nearest known one) or a value that is not allowed.
    """
    from jsonargparse import ArgumentError

    parser = _parser(prog, config_class)
    argv = _with_values(list(sys.argv[1:] if argv is None else argv), config_class)
    words = ("help", "config", "print_config", "print_shtab")
    known = [str(a.dest) for a in parser._actions if a.dest.rpartition(".")[2] not in words]
    argv, layers = _with_files_read(argv, known)
    argv += _overruled(argv, known)
    if settings:
        layers = [(settings[0], _checked(*settings, known)), *layers]
        argv = ["--config", json.dumps(layers[0][1]), *argv]
    given = [pair for _, tree in layers for pair in _flat(tree, known)] + list(_named_in(argv))
    _refuse_other_numbers(given, parser)
    if defaults:
        argv = ["--config", json.dumps(defaults(dict(given))), *argv]
    try:
        result = parser.instantiate(parser.parse_args(argv))
    except (ArgumentError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise InputError(_plain(sentence_of(error), known)) from error
    except RecursionError as error:
        raise InputError("a setting is nested too deeply") from error
    values = vars(result)
    values.pop("config", None)
    own = {field.name: field.default for field in fields(config_class)}  # type: ignore[arg-type]
    values = {k: x if x == own.get(k) else tidied(x, k) for k, x in values.items()}
    try:
        return config_class(**values)
    except ValueError as error:
        raise InputError(str(error)) from error


def parse_section(
    prog: str,
    config_class: type[Config],
    words: Sequence[str],
    *,
    settings: tuple[str, dict[str, Any]],
    defaults: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> Config:
    """`parse` of a section of a file; whatever is wrong is said to be there.

    Raises:
        InputError: as of `parse`.
    """
    where = settings[0]
    try:
        return parse(prog, config_class, words, settings=settings, defaults=defaults)
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(where) else f"{where}: {message}") from error


def build_parser(prog: str, config_class: type) -> ArgumentParser:
    """An option for each setting of a class, grouped as it is."""
    from jsonargparse import ArgumentParser, set_loader, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    set_loader("ssld", _value, exceptions=(InputError,))
    parser = ArgumentParser(
        prog=prog,
        description=config_class.__doc__,
        exit_on_error=False,
        allow_abbrev=False,
        parser_mode="ssld",
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these settings.")
    parser.add_class_arguments(config_class)
    return parser


# A recipe and a grid of them parse many times, at a fifth of a second each.
_parser = functools.cache(build_parser)


def _value(text: str) -> Any:
    """What a word says; `C:` is text, though to YAML it is a mapping to nothing."""
    result = parsed(text)
    to_nothing = isinstance(result, dict) and result and all(x is None for x in result.values())
    return text if to_nothing and not text.lstrip().startswith("{") else result


def _with_files_read(
    argv: list[str], known: list[str]
) -> tuple[list[str], list[tuple[str, dict[str, Any]]]]:
    """The words with what each `--config FILE` says in place of FILE, and all of that with its
    name: a file is read once, it may be a pipe."""
    words, layers, rest = [], [], iter(argv)
    for word in rest:
        name, equals, file = word.partition("=")
        if name == "--config":
            file = file if equals else next(rest, "")
            tree = read_settings(Path(file).expanduser())
            _refuse_data_yaml(file, tree, known)
            tree = _checked(file, tree, known)
            layers.append((file, tree))
            word = f"--config={json.dumps(tree)}"
        words.append(word)
    return words, layers


def _refuse_data_yaml(file: str, tree: dict[str, Any], known: list[str]) -> None:
    """
    Raises:
        InputError: a data set as Ultralytics describes it, in place of settings.
    """
    if "names" in tree and {"train", "val"} & tree.keys() and "data.train" in known:
        raise InputError(
            f"{file} describes a data set, not settings: give --data.train {file}::train "
            f"--data.val {file}::val"
        )


def _named_in(argv: list[str]) -> Iterator[tuple[str, str]]:
    """Name and value of every `--name value` and `--name=value`."""
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            yield name.removeprefix("--"), value if equals else following


def _overruled(argv: list[str], known: list[str]) -> list[str]:
    """A length that is typed overrules the other one of a file: `--steps 9` is `--epochs null`,
    too, where epochs are not typed."""
    typed = dict(_named_in(argv))
    return [
        f"--{other}=null"
        for own, other in (LENGTHS, LENGTHS[::-1])
        if typed.get(own, "null") != "null" and other not in typed and other in known
    ]


_OTHER_NUMBER = re.compile(r"[-+]?(?:0[xb][\da-f_]+|\d[\d_]*(?::[\d_.]+)+)", re.IGNORECASE)


def _refuse_other_numbers(given: Iterable[tuple[str, Any]], parser: ArgumentParser) -> None:
    """Refuse 1:30, which jsonargparse takes for 90 where a number belongs, and 0x10 for 16."""
    types = {str(x.dest): str(getattr(x, "_typehint", "a group")) for x in parser._actions}
    for key, value in given:
        kind = types.get(key, "str")
        if "str" in kind or "Any" in kind:
            continue
        if isinstance(value, str) and value[:1] in ("[", "{"):
            try:
                value = _value(value)
            except InputError:
                continue  # jsonargparse will say so, with the name
        if isinstance(value, dict):
            below = [(f"{key}.{name}", x) for name, x in value.items()]
            _refuse_other_numbers(below, parser)
        for word in value if isinstance(value, list) else [value]:
            if isinstance(word, str) and _OTHER_NUMBER.fullmatch(word.strip()):
                raise InputError(f"{key} is {shortened(word)}: give a number in decimal digits")


def _checked(
    where: str, tree: dict[str, Any], known: list[str], prefix: str = ""
) -> dict[str, Any]:
    """Settings whose names are all known, without groups that are left empty.

    Raises:
        InputError: an unknown name, or a single value in the place of a group.
    """
    result = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if any(other.startswith(f"{key}.") for other in known):
            if value is None:
                continue
            if not isinstance(value, dict):
                message = f"{key} is {shortened(value)}: give `name: value` lines below it"
                raise InputError(f"{where}: {message}")
            value = _checked(where, value, known, f"{key}.")
        elif key in STAGES and isinstance(value, dict):
            raise InputError(
                f"{where} is a recipe, its stage {key} is no setting: run it with `ssld recipe "
                f"{where}`"
            )
        elif key not in known:
            raise InputError(f"{where}: {_nearest(key, known)}")
        result[name] = value
    return result


def _flat(tree: dict[str, Any], known: list[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings in a tree by their full names, known or not."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        group = any(other.startswith(f"{key}.") for other in known)
        if group and isinstance(value, dict):
            yield from _flat(value, known, f"{key}.")
        else:
            yield key, value


def sentence_of(error: BaseException) -> str:
    """What an error says on one line, without characters that a terminal obeys."""
    message = one_line(error)
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename or 'file system'}: {error.strerror}"
    message = streams.printable(message)
    if len(message) <= SENTENCE:
        return message
    left = len(message) - SENTENCE  # it quotes what was given; the end says what to do
    return f"{message[: SENTENCE // 2]} [{left:,} characters] {message[-SENTENCE // 2 :]}"


def _with_values(argv: list[str], config_class: type) -> list[str]:
    """Let switches stand alone: `--resume` is `--resume=true`."""
    switches = {f"--{field.name}" for field in fields(config_class) if field.type == "bool"}
    bare = [following.startswith("--") or not following for following in [*argv[1:], ""]]
    return [
        f"{argument}=true" if argument in switches and alone else argument
        for argument, alone in zip(argv, bare, strict=False)
    ]


_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "NoneType": "null",
    "list": "a list",
    "tuple": "a list such as [1, 2]",
    "dict": "`name: value`",
}


def _plain(sentence: str, known: list[str]) -> str:
    """Say jsonargparse's complaint in a sentence, with the nearest known key for an unknown one."""
    unknown = re.search(r"unrecognized arguments: --([\w.]+)", sentence)
    if unknown:
        return _nearest(unknown.group(1), known)
    words = re.search(r"unrecognized arguments: (.*)$", sentence)
    if words:
        assigned = re.match(r"([A-Za-z_][\w.]*)=(.*)$", words.group(1).split()[0])
        if assigned:
            key = assigned.group(1)
            said = f"{shortened(words.group(1))} belongs to no setting: they begin with --"
            return f"{said}, as --{key}={assigned.group(2)}, if {key} is one"
        return (
            f"{shortened(words.group(1))} belongs to no setting: quote a pattern ('x/*.tar'), of "
            "which the shell makes several words, and write several sources as [a, b]"
        )
    missing = re.search(r"arguments are required: (.*)$", sentence)
    if missing:
        return f"{missing.group(1)} is missing: give it"
    wrong = re.match(r"Parser key ['\"]([\w.]+)['\"]: (.*)$", sentence)
    if not wrong:
        return sentence
    key, complaint = wrong.group(1), wrong.group(2).replace("typing.Literal", "one of ")
    complaint = re.sub(r"<class '(\w+)'>\d*", lambda x: _TYPES.get(x[1], x[1]), complaint)
    result = re.findall(r"Expected (?:an? )?(.+?)(?:\.| - |$| Got| Given)", complaint)
    result = result or re.findall(r"Subtypes: \[(.*?)\]", complaint)
    expected = " or ".join(dict.fromkeys(result))
    given = re.search(
        r"(?:Got|Given) value: ?(.*?)(?: - Expected|\. Got| Given value|$)", complaint
    )
    if not (expected and given):
        group = re.match(r"Unable to load config '(.*?)' - ", complaint)
        if group:
            return f"{key} is {shortened(group[1])}: give --{key}.NAME VALUE, or a --config"
        return f"{key}: {complaint[:LONGEST]}"
    return f"{key} is {shortened(given.group(1))}: give {expected}"


def _nearest(key: str, known: list[str]) -> str:
    leaves = {name.rpartition(".")[2]: name for name in reversed(known)}
    hint = did_you_mean(key, known, cutoff=0.5)
    near = [] if hint else difflib.get_close_matches(key, leaves, n=1, cutoff=0.5)
    hint = f"; did you mean {leaves[near[0]]!r}?" if near else hint
    hint = hint or "; `--help all` has the known ones"
    return f"unknown setting {shortened(key)}{hint}"
