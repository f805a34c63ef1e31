"""The `ssld` command. Each subcommand is a module, imported only when asked for."""

from __future__ import annotations

import difflib
import importlib
import sys

COMMANDS = {
    "quickstart": "the whole method on handwritten digits, in under three minutes",
    "distill": "train a student from a frozen teacher, without labels",
    "supervised": "train with human labels: teachers and honest baselines",
    "finetune": "the second stage: a run's student on the labeled set, more slowly",
    "fix": "the resolution fix: the classifier at a larger test size",
    "recipe": "distill, finetune and fix in one command, resumable",
    "ablate": "a recipe for each combination of a grid's settings: tables and plots",
    "plan": "before a long run: what is wrong, what it will take and cost",
    "bench": "speed of teacher, student and loader, alone and together",
    "compare": "several runs in one table and one set of curves",
    "curate": "choose unlabeled images: near-duplicates out, the teacher's surest in",
    "zoo": "distilled backbones: list, show, convert, publish, pull, verify, bundle, export",
    "evaluate": "top-1 and top-5 with 95 % intervals of any classifier on labeled images",
}


def _usage() -> str:
    lines = [f"  {name:<12}{summary}" for name, summary in COMMANDS.items()]
    return "usage: ssld COMMAND [--help] ...\n\ncommands:\n" + "\n".join(lines)


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
    return importlib.import_module(f"ssld.{name}").main(rest)


if __name__ == "__main__":
    raise SystemExit(main())
