"""The errors that a user sees as one sentence (`ssld/cli/parse.py`)."""


class InputError(ValueError):
    """Bad input, or something that must be mended before it goes on: a full disk, a loss that is
    not finite. The message is one sentence: what was wrong, where, and what to do. Exit code 2."""


class Interrupted(Exception):
    """The run was stopped from outside and `--resume` goes on as if nothing had happened: a signal,
    a process that was killed. Exit code 75 (EX_TEMPFAIL of sysexits.h: try again)."""
