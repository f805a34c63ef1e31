"""`ssld COMMAND --help`: the settings that are given often; `--help all`: all of them.

Which those are, the fields themselves say (`ssld.common.settings.IN_SHORT_HELP`).
"""

from __future__ import annotations

import argparse
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, get_type_hints

from ssld.cli.parse import build_parser
from ssld.common.settings import IN_SHORT_HELP, REFUSED, Settings


def help_of(
    prog: str, config_class: type, positional: Sequence[str] = (), words: Sequence[str] = ()
) -> str:
    """What a command says of itself and its settings, grouped as they are.

    Args:
        positional: see `ssld.cli.commands.Command`.
        words: those after `--help`; `all` among them asks for every setting.
    """
    parser: Any = build_parser(prog, config_class)
    kinds, width = get_type_hints(config_class), shutil.get_terminal_size().columns - 2
    for name, group in parser.groups.items():
        title = f"{name}: {_sentence(kinds[name])}" if name in kinds else "settings"
        group.title = textwrap.fill(title, width)
    known = [name for name, _ in _settings(config_class)]
    shown = known if "all" in words else short_settings(config_class)
    for action in parser._actions:
        if action.dest not in (*shown, "help", "config"):
            action.help = argparse.SUPPRESS
    given = [f"{x[:-1].upper()} ..." if x[-1] == "*" else x.upper() for x in positional]
    parser.usage = " ".join([prog, *given, "[--config F.yaml] [--NAME VALUE ...]"])
    left = len(known) - len(shown)
    more = f"\n\n`{prog} --help all` shows {left} more settings." if left else ""
    return parser.format_help().rstrip() + more


def short_settings(config_class: type) -> list[str]:
    """Full names of the settings that `--help` shows: what is marked or must be given; all where
    nothing is marked."""
    known = list(_settings(config_class))
    marked = [name for name, x in known if x.metadata == IN_SHORT_HELP]
    required = [name for name, x in known if x.default is x.default_factory is MISSING]
    return [*required, *marked] if marked else [name for name, _ in known]


def _sentence(config_class: type) -> str:
    """The first one of its docstring."""
    paragraph = " ".join((config_class.__doc__ or "").split("\n\n")[0].split())
    return re.split(r"\.\s+(?=[A-Z`])", paragraph)[0].rstrip(".")


def _settings(config_class: Any, prefix: str = "") -> Iterator[tuple[str, Field[Any]]]:
    kinds = get_type_hints(config_class)
    for x in fields(config_class):
        kind = kinds[x.name]
        if isinstance(kind, type) and issubclass(kind, Settings):
            group = f"{prefix}{x.name}."
            refused = [f"{group}{name}" for name in x.metadata.get(REFUSED, ())]
            yield from (y for y in _settings(kind, group) if y[0] not in refused)
        else:
            yield f"{prefix}{x.name}", x
