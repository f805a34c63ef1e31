"""The error that a user sees as one sentence."""


class InputError(ValueError):
    """Bad input, or something that must be mended before it goes on: a full disk, a loss that is
    not finite. The message is one sentence: what was wrong, where, and what to do. Exit code 2."""
