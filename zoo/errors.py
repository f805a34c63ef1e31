"""The error that a user sees as one sentence."""


class InputError(ValueError):
    """Bad input, or something that must be mended before it goes on: a full disk, a loss that is
    not finite. The message is one sentence: what was wrong, where, and what to do. Exit code 2."""


def printable(text: str) -> str:
    """A stranger's text without what a terminal would take for more than text."""
    return "".join(x if x.isprintable() else "?" for x in text)
