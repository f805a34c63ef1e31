"""The account of images that could not be read."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from ssld.common.errors import InputError
from ssld.common.files import cannot_write, write_atomically
from ssld.data.source import Images

SHOWN = 3
"""Images that a message names."""


class Entry(NamedTuple):
    """An image that could not be read, or must not be seen."""

    source: int
    """Number of its source."""
    sample_id: str
    location: str
    reason: str


class Unreadables:
    """Reports each unreadable image once, and stops the run when a source has too many.

    Args:
        limit: largest share of a source's images that may be unreadable (`data.max_unreadable`).
        log: JSON-lines file that names each one, or None.
    """

    def __init__(self, sources: Sequence[Images], limit: float, log: Path | None = None) -> None:
        self.sources = sources
        self.limit = limit
        self.log = log
        self.entries: dict[tuple[int, str], Entry] = {}
        self.new: list[Entry] = []
        """Found by this process since the last `merge`."""
        self.counts = [0 for _ in sources]
        self.named: set[tuple[int, str]] = set()
        """Images that stderr has named; runs on the same images share it."""
        self._sorted = False

    @property
    def count(self) -> int:
        """How many different images could not be read so far, on all processes."""
        return len(self.entries)

    def add(self, entries: Iterable[Entry]) -> None:
        """Note a batch's unreadable images.

        Raises:
            InputError: a source exceeds the limit.
        """
        for entry in entries:
            if self._note(entry):
                if entry[:2] not in self.named:
                    message = f"unreadable, left out: {entry.location} ({entry.reason})"
                    tqdm.write(message, file=sys.stderr)
                self.named.add(entry[:2])
                self._check(entry)

    def _note(self, entry: Entry) -> bool:
        fresh = entry[:2] not in self.entries
        if fresh:
            self.entries[entry[:2]] = entry
            self.counts[entry.source] += 1
            self.new.append(entry)
        return fresh

    def merge(self, entries: Iterable[tuple[int, str, str, str]]) -> None:
        """Take in what all processes found since the last time, or what a checkpoint knew."""
        for entry in sorted(Entry(*entry) for entry in entries):
            self._note(entry)
        self.new.clear()

    def append(self, entries: Iterable[tuple[int, str, str, str]]) -> None:
        """Add to the log what all processes found since the last time.

        Raises:
            InputError: it cannot be written.
        """
        if self.log is None:
            return
        try:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(_lines({entry[:2]: Entry(*entry) for entry in entries}.values()))
        except OSError as error:
            raise cannot_write(self.log, error) from error
        self._sorted = False

    def write(self) -> None:
        """Write the log anew, sorted, where it is not; deletes it where there is nothing to say.

        Raises:
            InputError: it cannot be written.
        """
        if self.log is None or self._sorted:
            return
        if self.entries:
            write_atomically(self.log, _lines(self.entries.values()))
        else:
            self.log.unlink(missing_ok=True)
        self._sorted = True

    def _check(self, entry: Entry) -> None:
        source, bad = self.sources[entry.source], self.counts[entry.source]
        if bad > self.limit * len(source):
            self._sorted = False
            self.write()
            known = [x for x in self.entries.values() if x.source == entry.source]
            shown = ", ".join(f"{x.location} ({x.reason})" for x in known[-SHOWN:])
            raise InputError(
                f"{source.path}: {bad} of {len(source)} images cannot be read or used, more than "
                f"data.max_unreadable allows ({self.limit:.1%}), {shown}"
                f"{f' and {bad - SHOWN} more' if bad > SHOWN else ''}; mend the source or raise "
                "the limit"
            )


def _lines(entries: Iterable[Entry]) -> str:
    rows = ({k: x for k, x in e._asdict().items() if k != "source"} for e in sorted(entries))
    return "".join(json.dumps(row) + "\n" for row in rows)
