"""metrics.jsonl: a line a step perhaps, of which verdicts and plots need little.

A run of 750,000 lines has half a GB of them. What was read is not read again, evaluations are kept
as they are, and of training lines as many means over neighbours as a plot has room for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssld.common.errors import InputError

Line = dict[str, Any]
MOST_POINTS = 1000
"""Most points of a curve."""
OF_THE_LAST_LINE = ("kind", "step", "epoch", "unreadable")
"""Of several lines taken together those of the last; all other numbers are means."""
BLOCK_BYTES = 2**16


def lines_of(metrics: Path) -> Iterator[Line]:
    """The whole lines; one that was cut off by a kill is left out.

    Raises:
        InputError: a line is damaged.
    """
    return (line for line, _ in _lines_from(metrics, 0))


def _lines_from(metrics: Path, start: int) -> Iterator[tuple[Line, int]]:
    """Lines, and where each ends, bytes."""
    if not metrics.is_file():
        return
    end = start
    with metrics.open("rb") as file:
        file.seek(start)
        for raw in file:
            if not raw.endswith(b"\n"):
                return
            end += len(raw)
            yield _parsed(metrics, raw, end), end


def _parsed(metrics: Path, raw: bytes, end: int) -> Line:
    try:
        line = json.loads(raw)
        if isinstance(line["step"], int) and isinstance(line["kind"], str):
            return line
        raise ValueError("no step and kind")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(
            f"{metrics} is damaged: the line that ends at byte {end:,} is not one of a run; remove "
            "it"
        ) from error


def cut_after(metrics: Path, step: int, pending_evaluation: bool) -> None:
    """Drop the lines of later steps, that of `step`'s evaluation if it is pending, and half a line
    at the end. Steps never fall, so this looks from the end on, however long the file is."""
    if not metrics.is_file():
        return
    keep = 0
    for line, end in _backwards(metrics):
        pending = pending_evaluation and line["kind"] == "eval"
        if line["step"] < step or (line["step"] == step and not pending):
            keep = end
            break
    with metrics.open("rb+") as file:
        file.truncate(keep)
        os.fsync(file.fileno())


def _backwards(metrics: Path) -> Iterator[tuple[Line, int]]:
    """Whole lines from the last on, and where each ends."""
    with metrics.open("rb") as file:
        start = file.seek(0, os.SEEK_END)
        tail = b""  # from `start` on: the end of a line whose begin is not read yet
        while start > 0:
            size = min(BLOCK_BYTES, start)
            start -= size
            file.seek(start)
            tail = file.read(size) + tail
            *parts, half = tail.split(b"\n")
            end = start + len(tail) - len(half)
            while len(parts) > (start > 0):
                raw = parts.pop()
                yield _parsed(metrics, raw, end), end
                end -= len(raw) + 1
            tail = b"".join(part + b"\n" for part in parts)


class Thinned:
    """Training lines as at most `MOST_POINTS` points, each a mean over as many neighbours."""

    def __init__(self) -> None:
        self.size = 1
        self._groups: list[tuple[int, Line, dict[str, list[float]]]] = []
        """Lines in it, the last one, and of each number its sum and how often it is there."""

    def add(self, line: Line) -> None:
        numbers = {
            k: x
            for k, x in line.items()
            if k not in OF_THE_LAST_LINE and isinstance(x, int | float)
        }
        group = (1, line, {k: [x, 1.0] for k, x in numbers.items()})
        if self._groups and self._groups[-1][0] < self.size:
            group = _joined(self._groups.pop(), group)
        self._groups.append(group)
        if len(self._groups) > MOST_POINTS:
            self.size *= 2
            pairs = zip(self._groups[::2], [*self._groups[1::2], None], strict=False)
            self._groups = [_joined(a, b) if b else a for a, b in pairs]

    def lines(self) -> list[Line]:
        """In the order of their steps."""
        return [
            last if count == 1 else {**last, **{k: x / n for k, (x, n) in sums.items()}}
            for count, last, sums in self._groups
        ]


def _joined(a: tuple, b: tuple) -> tuple:
    sums = {k: list(x) for k, x in a[2].items()}
    for key, (total, count) in b[2].items():
        known = sums.setdefault(key, [0.0, 0.0])
        known[0], known[1] = known[0] + total, known[1] + count
    return a[0] + b[0], b[1], sums


class History:
    """What a run that writes a metrics.jsonl wants to know of it."""

    def __init__(self, metrics: Path) -> None:
        self.metrics = metrics
        self.forget()

    def forget(self) -> None:
        """The file was cut."""
        self._read, self._train, self._evaluations = 0, Thinned(), []

    def _read_on(self) -> None:
        for line, end in _lines_from(self.metrics, self._read):
            self._read = end
            if line["kind"] == "eval":
                self._evaluations.append(line)
            else:
                self._train.add(line)

    def evaluations(self) -> list[Line]:
        """Their lines."""
        self._read_on()
        return self._evaluations

    def training(self) -> list[Line]:
        """Training lines, at most `MOST_POINTS`."""
        self._read_on()
        return self._train.lines()
