"""The `ssld` command. Each subcommand is a module, imported only when asked for."""

from __future__ import annotations

import difflib
import importlib
import sys

from ssld import streams
from ssld.commands import COMMANDS


def _usage() -> str:
    lines = [f"  {name:<14}{command.summary}" for name, command in COMMANDS.items()]
    return "usage: ssld COMMAND [--help] ...\n\ncommands:\n" + "\n".join(lines)


@streams.whole
def main(argv: list[str] | None = None) -> int:
    """Run `ssld COMMAND ...`; returns the exit code."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    if name == "--version":
        from ssld import __version__

        print(__version__)
        return 0
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; known: {', '.join(COMMANDS)}"
        print(f"error: unknown command {name!r}{hint}", file=sys.stderr)
        return 2
    return importlib.import_module(COMMANDS[name].module).main(rest)


if __name__ == "__main__":
    raise SystemExit(main())
