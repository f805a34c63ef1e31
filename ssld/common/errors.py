"""The errors that a user sees as one sentence (`ssld/cli/parse.py`)."""

from zoo.errors import InputError, did_you_mean, one_line, printable

__all__ = ["InputError", "Interrupted", "did_you_mean", "one_line", "printable"]


class Interrupted(Exception):
    """The run was stopped from outside and `--resume` goes on as if nothing had happened: a signal,
    a process that was killed. Exit code 75 (EX_TEMPFAIL of sysexits.h: try again)."""
