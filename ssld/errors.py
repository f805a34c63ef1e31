"""The error of a user's input."""


class InputError(ValueError):
    """Bad input. The message is one sentence: what was wrong, where, and what to do.

    The command line prints it without a traceback and exits with 2 (`ssld/cli.py`).
    """
