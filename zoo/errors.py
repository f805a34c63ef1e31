"""The error that a user sees as one sentence, and what such sentences are made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input, or something that must be mended before it goes on: a full disk, a loss that is
    not finite. The message is one sentence: what was wrong, where, and what to do. Exit code 2."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


def printable(text: str) -> str:
    """A stranger's text without what a terminal would take for more than text."""
    return "".join(x if x.isprintable() else "?" for x in text)


def one_line(error: BaseException, most: int | None = None) -> str:
    """What an error says, without its line breaks, `most` characters at most; never nothing."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())[:most] or type(error).__name__


def did_you_mean(name: str, known: Iterable[str], *, most: int = 1, cutoff: float = 0.6) -> str:
    """`; did you mean 'a'?` with those of the known names that are nearest, or nothing.

    Args:
        cutoff: see `difflib.get_close_matches`.
    """
    near = difflib.get_close_matches(name, list(known), n=most, cutoff=cutoff)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
