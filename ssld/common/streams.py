"""Standard streams as strangers have them: closed, of ASCII alone, or a pipe that nobody reads."""

from __future__ import annotations

import functools
import io
import os
import select
import sys
from collections.abc import Callable
from typing import Any, ParamSpec, TextIO

Words = ParamSpec("Words")
EXIT_NO_READER = 141
"""128 + SIGPIPE, what a shell shows of a command whose reader left: `ssld ... | head -1`."""
EXIT_CANNOT_WRITE = 2
LINE_SECONDS = 60.0
"""Least time between two lines of progress in what is no terminal."""


def whole(main: Callable[Words, int]) -> Callable[Words, int]:
    """A command that ends with an exit code whatever its output is connected to."""

    @functools.wraps(main)
    def wrapped(*args: Words.args, **kwargs: Words.kwargs) -> int:
        _prepare()
        try:
            try:
                return main(*args, **kwargs)
            finally:  # at exit Python would say in four lines that it cannot; --help leaves early
                sys.stdout.flush()
        except BrokenPipeError:
            broken = [stream for stream in (sys.stdout, sys.stderr) if reader_left(stream)]
            if not broken:
                raise
            for stream in broken:
                _silence(stream)
            return EXIT_NO_READER
        except OSError as error:
            if error.filename is not None:
                raise
            _silence(sys.stdout)  # a full disk behind `>`
            print(f"error: standard output: {error.strerror or error}", file=sys.stderr)
            return EXIT_CANNOT_WRITE

    return wrapped


def reader_left(stream: TextIO) -> bool:
    """Whether nobody can read any more what is written there."""
    try:
        stream.flush()
        number = stream.fileno()
    except BrokenPipeError:
        return True
    except (OSError, ValueError):  # no file, or closed
        return False
    poll = select.poll()
    poll.register(number, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def is_terminal(stream: TextIO) -> bool:
    """Whether a progress bar can move its cursor there."""
    return os.environ.get("TERM") != "dumb" and stream.isatty()


def is_notebook() -> bool:
    """Whether what is printed appears below a cell of Jupyter."""
    return type(sys.stdout).__module__.startswith("ipykernel.")


def printable(text: str) -> str:
    """Text whose characters that are not to be seen, which a terminal may obey, are written out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def aside() -> TextIO:
    """Where is written what is no result of a command: standard error; in a notebook, where that is
    red and cuts what is printed besides into pieces, standard output."""
    return sys.stdout if is_notebook() else sys.stderr


def bar_output(*, quiet: bool = False, lines: bool = True) -> dict[str, Any]:
    """Arguments of tqdm for where a progress bar is drawn: twice a second on a terminal and in a
    notebook, elsewhere as a line a minute, of which a log file keeps every one.

    Args:
        quiet: draw none.
        lines: draw them elsewhere.
    """
    if quiet:
        return {"disable": True}
    if is_notebook():
        # The cursor cannot go up there, so that a bar within a bar takes its line.
        return {"mininterval": 0.5, "file": aside(), "position": 0}
    if is_terminal(sys.stderr):
        return {"mininterval": 0.5}
    if not lines:
        return {"disable": True}
    # Else a thread of tqdm would draw after ten seconds in which nothing happened.
    return {"mininterval": LINE_SECONDS, "maxinterval": 2 * LINE_SECONDS, "file": _Lines()}


class _Lines(io.TextIOBase):
    """Standard error, where what begins anew at the left is a new line."""

    def write(self, text: str) -> int:
        line = text.replace("\r", "").replace("\x1b[A", "").strip()
        if line:
            sys.stderr.write(f"{line}\n")
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()


def _prepare() -> None:
    """No closed stream, whose number the next file would get; no character that stops a print."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, Nowhere())
            try:
                os.fstat(number)
            except OSError:
                _dup_null(number)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
            stream.reconfigure(errors="backslashreplace")


class Nowhere(io.TextIOBase):
    """Takes what nobody wants, and has nothing to read."""

    def write(self, text: str) -> int:
        return len(text)

    def read(self, size: int | None = -1) -> str:
        return ""


def _silence(stream: TextIO) -> None:
    """What is still in its buffer goes nowhere."""
    try:
        _dup_null(stream.fileno())
    except (OSError, ValueError):
        setattr(sys, "stdout" if stream is sys.stdout else "stderr", Nowhere())


def _dup_null(number: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != number:
        os.dup2(null, number)
        os.close(null)
