"""The preflight report of annotated images: what was understood, mended and left out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from downstream.dense.texts import one_line
from ssld.common.files import write_atomically

EXAMPLES = 5
"""Places named of each finding."""
SHOWN = 30
"""Classes in the printed lines; preflight.json has all."""


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


@dataclass(frozen=True)
class ClassCount:
    name: str
    category_id: int
    """Its number in the annotation files; its number for the network is its place in the list."""
    boxes: int
    """Without crowd ones."""
    images: int
    """With such a box."""


@dataclass(frozen=True)
class BoxReport:
    """Of one set of boxes."""

    path: str
    format: str
    folder: str
    images: int
    boxes: int
    """That are kept, with crowd ones."""
    crowd: int
    """COCO's iscrowd, VOC's difficult."""
    without_boxes: int
    """Images on which nothing is annotated; they are kept, as negatives."""
    classes: list[ClassCount]
    fixed: list[Finding] = field(default_factory=list)
    dropped: list[Finding] = field(default_factory=list)
    noticed: list[Finding] = field(default_factory=list)
    """What was left as it is."""
    remarks: list[str] = field(default_factory=list)
    files_sha256: str = ""
    """Of the annotation files, in order: each one's own sha256."""
    boxes_sha256: str = ""
    """Of image names, sizes and boxes as they are trained on."""

    def lines(self) -> list[str]:
        """For the terminal."""
        lines = [
            f"{self.path} ({self.format}): {self.images} images ({self.without_boxes} negatives, "
            f"without boxes), {self.boxes} boxes ({self.crowd} crowd or difficult, untrained), "
            f"{len(self.classes)} classes",
            "classes (number: name, id in the file, boxes): "
            + ", ".join(
                f"{i}: {one_line(entry.name)}, {entry.category_id}, {entry.boxes}"
                for i, entry in enumerate(self.classes[:SHOWN])
            )
            + (f", {len(self.classes) - SHOWN} more" if len(self.classes) > SHOWN else ""),
        ]
        empty = [one_line(entry.name) for entry in self.classes if not entry.boxes]
        if empty:
            lines.append(f"no box of {len(empty)} classes: {', '.join(empty[:SHOWN])}")
        lines += [f"fixed: {finding.line()}" for finding in self.fixed]
        lines += [f"dropped: {finding.line()}" for finding in self.dropped]
        lines += [f"note: {finding.line()}" for finding in self.noticed]
        lines += self.remarks
        lines.append(
            f"sha256 of the files {self.files_sha256[:16]}, of the boxes {self.boxes_sha256[:16]}"
        )
        return lines

    def as_dict(self) -> dict[str, Any]:
        """For json."""
        return dataclasses.asdict(self)


class Report(Protocol):
    def lines(self) -> list[str]: ...

    def as_dict(self) -> dict[str, Any]: ...


class Annotated(Protocol):
    """A source of boxes or masks."""

    @property
    def report(self) -> Report: ...

    def __len__(self) -> int: ...

    def location(self, i: int) -> str: ...


def in_both(first: Sequence[Annotated], second: Sequence[Annotated]) -> list[str]:
    """Image files that two lists of sources share: evaluation on them would be on training data."""
    seen = {source.location(i) for source in first for i in range(len(source))}
    return [
        place
        for source in second
        for i in range(len(source))
        if (place := source.location(i)) in seen
    ]


def write_preflight(folder: Path, sources: Mapping[str, Sequence[Annotated]]) -> list[str]:
    """Write `preflight.json` and `preflight.md`.

    Args:
        sources: by what they are for, `train` and `val`.

    Returns:
        the lines to print.

    Raises:
        InputError: they cannot be written.
    """
    reports = {role: [source.report for source in group] for role, group in sources.items()}
    shared = in_both(sources.get("train", ()), sources.get("val", ()))
    content = {
        **{role: [report.as_dict() for report in group] for role, group in reports.items()},
        "in_train_and_val": shared,
    }
    write_atomically(folder / "preflight.json", json.dumps(content, indent=1) + "\n")
    lines, text = [], ["# Preflight"]
    for role, group in reports.items():
        for report in group:
            said = report.lines()
            lines += [f"{role}: {said[0]}", *(f"  {line}" for line in said[1:])]
            text += ["", f"## {role}", "", "```", *said, "```"]
    if shared:
        warning = (
            f"warning: {len(shared)} images are in train and in val ({', '.join(shared[:2])}"
            f"{', ...' if len(shared) > 2 else ''}): the evaluation will flatter"
        )
        lines.append(warning)
        text += ["", f"**{warning}**"]
    write_atomically(folder / "preflight.md", "\n".join(text) + "\n")
    return lines
