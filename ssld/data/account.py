"""What a source holds and what it left out, in one line for whoever gave it."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field

from ssld.data.decode import Unreadable, image_size
from ssld.data.storage import read_all

NAMED_KINDS = 8
"""Kinds that are named; of more the rest is counted together."""
MAX_LOOK_BYTES = 20_000_000
"""A larger file of an unknown ending is not looked into."""

HIDDEN = "hidden"
OUTSIDE_UTF8 = "with a name that is not UTF-8"


@dataclass
class Account:
    """Files that are no images of the source, by kind, and the first of each kind."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    """What else is to be said, and of how many: labels found so, links that were followed."""
    folder: str | None = None
    """A local folder where the examples lie, to look into those of unknown endings."""

    def leave(self, kind: str, name: str, count: int = 1) -> None:
        """Note `count` files of a kind, of which `name` is one."""
        self.counts[kind] += count
        self.examples.setdefault(kind, name)

    def note(self, text: str, name: str, count: int = 1) -> None:
        """Note something else of `count` files or labels, of which `name` is one."""
        self.notes[text] += count
        self.examples.setdefault(text, name)

    def leave_other(self, name: str) -> None:
        """Note a file whose ending is not an image's."""
        self.leave(ending(name), name)

    def add(self, other: Account) -> None:
        """Take in what another part of the source left out."""
        for kind, count in other.counts.items():
            self.leave(kind, other.examples[kind], count)
        for text, count in other.notes.items():
            self.note(text, other.examples[text], count)

    def left_out(self) -> str:
        """`3 .txt (a/notes.txt), 1 hidden (.x)`; empty where nothing was left out."""
        kinds = self.counts.most_common()
        parts = [
            f"{count:,} {kind} ({self.examples[kind]}{self._inside(kind)})"
            for kind, count in kinds[:NAMED_KINDS]
        ]
        if kinds[NAMED_KINDS:]:
            rest = sum(count for _, count in kinds[NAMED_KINDS:])
            parts.append(f"{rest:,} of {len(kinds) - NAMED_KINDS} other kinds")
        return ", ".join(parts)

    def _inside(self, kind: str) -> str:
        """What is to be said of a file that is an image in spite of its ending."""
        if self.folder is None or not (kind.startswith(".") or kind == ending("")):
            return ""
        file = os.path.join(self.folder, self.examples[kind])
        try:
            if os.path.getsize(file) > MAX_LOOK_BYTES or not os.path.isfile(file):
                return ""
            image_size(read_all(file))
        except (OSError, Unreadable):
            return ""
        return ", an image by its content: rename such files"


def ending(name: str) -> str:
    """`.txt`, in small letters, of a file's name."""
    return os.path.splitext(name)[1].lower() or "without an ending"
