"""From command line and YAML to a frozen configuration, and from an exception to one sentence."""

from __future__ import annotations

import difflib
import functools
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from ssld.errors import InputError, Interrupted
from ssld.run.launcher import leave_processes, start_asked_for_processes

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

Config = TypeVar("Config")

EXIT_BAD_INPUT = 2
EXIT_TRY_AGAIN = 75
EXIT_INTERRUPTED = 130


def command(
    prog: str,
    config_class: type[Config],
    work: Callable[[Config], int | None],
    argv: Sequence[str] | None = None,
    *,
    launched: bool = False,
    defaults: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    section: str | None = None,
) -> int:
    """Parse `argv` into `config_class` and do `work` with it.

    Args:
        argv: by default what this process was given, which also means that it was `launched`: as a
            module of its own, by accelerate or torchrun perhaps.
        defaults: see `parse`.
        section: where the first word is no option, it is a recipe, of which this section is meant.

    Returns the exit code: what `work` returns, else 0; 2 for what must be mended (one sentence on
    stderr; the traceback too when the environment variable SSLD_DEBUG is 1); 75 when stopped by a
    signal or a lost process, `--resume` goes on; 130 when interrupted without a checkpoint.
    """
    try:
        _listen_to_sigterm()
        words, settings = list(sys.argv[1:] if argv is None else argv), None
        if section and words and not words[0].startswith("-"):
            settings, words = _section(words[0], section), words[1:]
        config = parse(prog, config_class, words, settings=settings, defaults=defaults)
        if argv is None or launched:
            start_asked_for_processes()
        code = work(config) or 0
        leave_processes()
        return code
    except (InputError, Interrupted, OSError) as error:
        if os.environ.get("SSLD_DEBUG") == "1":
            raise
        stopped = isinstance(error, Interrupted)
        rank = os.environ.get("RANK", "0")
        where = "" if rank == "0" else f" (process {rank})"
        print(f"{'stopped' if stopped else 'error'}{where}: {_sentence(error)}", file=sys.stderr)
        return EXIT_TRY_AGAIN if stopped else EXIT_BAD_INPUT
    except KeyboardInterrupt:
        said = "interrupted: the same command goes on, a training run with --resume"
        print(said, file=sys.stderr)
        return EXIT_INTERRUPTED


def _section(file: str, section: str) -> tuple[str, dict[str, Any]]:
    """The settings of one stage of a recipe, as `parse` wants them."""
    tree = read_settings(Path(file))
    if not isinstance(tree.get(section), dict):
        raise InputError(f"{file} has no section {section}: give a recipe, or settings by --config")
    return f"{file}, {section}", {"out": f"{tree.get('out', 'runs')}/{section}", **tree[section]}


def _listen_to_sigterm() -> None:
    """Outside the training loop, which writes a checkpoint first (`ssld/run/preemption.py`)."""

    def stop(*_: object) -> None:
        raise Interrupted("SIGTERM before or after the training loop; go on with --resume")

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)


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
    known = [str(a.dest) for a in parser._actions if a.dest not in ("help", "print_config")]
    layers = [(f"{file}", read_settings(file)) for file in _config_files(argv)]
    layers = [settings, *layers] if settings else layers
    for where, tree in layers:
        for key, _ in _flat(tree, known):
            if key not in known:
                raise InputError(f"{where}: {_nearest(key, known)}")
    if settings:
        argv = ["--config", json.dumps(settings[1]), *argv]
    if defaults:
        given = {key: value for _, tree in layers for key, value in _flat(tree, known)}
        argv = ["--config", json.dumps(defaults(given | dict(_named_in(argv)))), *argv]
    try:
        found = parser.instantiate(parser.parse_args(argv))
    except (ArgumentError, ValueError, TypeError) as error:
        raise InputError(_plain(_sentence(error), known)) from error
    values = vars(found)
    values.pop("config", None)
    try:
        return config_class(**values)
    except ValueError as error:
        raise InputError(str(error)) from error


@functools.cache  # a recipe and a grid of them parse many times, at a fifth of a second each
def _parser(prog: str, config_class: type) -> ArgumentParser:
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=prog, description=config_class.__doc__, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these settings.")
    parser.add_class_arguments(config_class)
    return parser


def _config_files(argv: list[str]) -> list[Path]:
    return [Path(value) for name, value in _named_in(argv) if name == "config"]


def _named_in(argv: list[str]) -> Iterator[tuple[str, str]]:
    """Name and value of every `--name value` and `--name=value`."""
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            yield name.removeprefix("--"), value if equals else following


def read_settings(file: Path) -> dict[str, Any]:
    """What a YAML file says.

    Raises:
        InputError: there is none, or it is not YAML, or no settings.
    """
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), SettingsLoader)
    except FileNotFoundError as error:
        raise InputError(f"{str(file)!r}: no such file; give a YAML recipe") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not valid YAML: {_sentence(error)}") from error
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds no settings; give `name: value` lines")
    return content


class SettingsLoader(yaml.SafeLoader):
    """YAML as people write it: 1e-5 is a number; a key is the text that was typed (`off`, `0`), and
    is there once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            line = node.start_mark.line + 1
            raise InputError(f"{twice[0]!r} is there twice in the lines from {line} on; give one")
        self.flatten_mapping(node)
        pairs = ((key.value, self.construct_object(x, deep=True)) for key, x in node.value)
        return dict(pairs)


_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
SettingsLoader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def _flat(tree: dict[str, Any], known: list[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings in a tree by their full names, known or not."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        group = any(other.startswith(f"{key}.") for other in known)
        if group and isinstance(value, dict):
            yield from _flat(value, known, f"{key}.")
        else:
            yield key, value


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'file system'}: {error.strerror}"
    return " ".join(str(error).split())


def _with_values(argv: list[str], config_class: type) -> list[str]:
    """Let switches stand alone: `--resume` is `--resume=true`."""
    switches = {f"--{field.name}" for field in fields(config_class) if field.type == "bool"}
    bare = [following.startswith("--") or not following for following in [*argv[1:], ""]]
    return [
        f"{argument}=true" if argument in switches and alone else argument
        for argument, alone in zip(argv, bare, strict=False)
    ]


def _plain(sentence: str, known: list[str]) -> str:
    """Say jsonargparse's complaint in a sentence, with the nearest known key for an unknown one."""
    unknown = re.search(r"unrecognized arguments: --([\w.]+)", sentence)
    if unknown:
        return _nearest(unknown.group(1), known)
    wrong = re.match(r"Parser key ['\"]([\w.]+)['\"]: (.*)$", sentence)
    if not wrong:
        return sentence
    key, complaint = wrong.group(1), wrong.group(2).replace("typing.Literal", "one of ")
    expected = ", ".join(
        dict.fromkeys(re.findall(r"Expected (?:an? )?(.+?)(?:\.| - |$| Got| Given)", complaint))
    )
    given = re.search(r"(?:Given value|Got value): (.*)$", complaint)
    expected = re.sub(r"<class '(\w+)'>", r"\1", expected)
    if not (expected and given):
        return f"{key}: {complaint}"
    return f"{key} is {given.group(1)!r}: give {expected.replace('NoneType', 'null')}"


def _nearest(key: str, known: list[str]) -> str:
    leaves = {name.rpartition(".")[2]: name for name in reversed(known)}
    found = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    found = found or [leaves[x] for x in difflib.get_close_matches(key, leaves, n=1, cutoff=0.5)]
    hint = f"; did you mean {found[0]!r}?" if found else "; see --help for the known ones"
    return f"unknown setting {key!r}{hint}"
