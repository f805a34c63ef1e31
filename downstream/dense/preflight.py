"""The preflight report of annotated images: what was understood, mended and left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ssld.common.files import write_atomically

EXAMPLES = 5
"""Places named of each finding."""


@dataclass(frozen=True)
class Finding:
    """Something that befell `count` boxes or images."""

    what: str
    count: int
    examples: tuple[str, ...]
    """The first EXAMPLES places."""

    def line(self) -> str:
        more = "; ..." if self.count > 2 else ""
        return f"{self.what}: {self.count} ({'; '.join(self.examples[:2])}{more})"


def findings(what: str, places: Sequence[str], count: int | None = None) -> list[Finding]:
    """A finding with the first of `places`; none where there are no places.

    Args:
        count: of what was found, by default one a place.
    """
    number = len(places) if count is None else count
    return [Finding(what, number, tuple(places[:EXAMPLES]))] if places else []


class Report(Protocol):
    """What is known of one annotated source before the first step."""

    def lines(self) -> list[str]: ...

    def as_dict(self) -> dict[str, Any]: ...


class Annotated(Protocol):
    """A source of boxes or masks; see `ssld.data.source.Source` for what it shares with others."""

    path: str
    class_names: list[str]

    def __len__(self) -> int: ...

    def sample_id(self, i: int) -> str: ...

    def location(self, i: int) -> str: ...

    def size(self, i: int) -> int | None: ...


def in_both(first: Sequence[Annotated], second: Sequence[Annotated]) -> list[str]:
    """Image files that two lists of sources share: evaluation on them would be on training data."""
    seen, places = (
        [source.location(i) for source in sources for i in range(len(source))]
        for sources in (first, second)
    )
    shared = set(seen).intersection(places)
    return [place for place in places if place in shared]


def write_preflight(
    folder: Path, reports: Mapping[str, Sequence[Report]], shared: Sequence[str] = ()
) -> list[str]:
    """Write `preflight.json` and `preflight.md`.

    Args:
        reports: of the sources, by what they are for, `train` and `val`.
        shared: image files that are in both.

    Returns:
        the lines to print.

    Raises:
        InputError: they cannot be written.
    """
    content = {
        **{role: [report.as_dict() for report in group] for role, group in reports.items()},
        "in_train_and_val": list(shared),
    }
    write_atomically(folder / "preflight.json", json.dumps(content, indent=1) + "\n")
    lines, text = [], ["# Preflight"]
    for role, group in reports.items():
        for report in group:
            first, *rest = report.lines()
            lines += [f"{role}: {first}", *(f"  {line}" for line in rest)]
            text += ["", f"## {role}", "", "```", first, *rest, "```"]
    if shared:
        warning = (
            f"warning: {len(shared)} images are in train and in val ({', '.join(shared[:2])}"
            f"{', ...' if len(shared) > 2 else ''}): the evaluation will flatter"
        )
        lines.append(warning)
        text += ["", f"**{warning}**"]
    write_atomically(folder / "preflight.md", "\n".join(text) + "\n")
    return lines
