"""What a set of boxes is: counted, mended, left out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from downstream.dense.preflight import Finding
from downstream.dense.texts import short_line
from downstream.detection.data.keypoint_cleaning import KeypointCounts

SHOWN = 30
"""Classes in the printed lines; preflight.json has all."""


@dataclass(frozen=True)
class ClassBoxes:
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
    classes: list[ClassBoxes]
    masks: bool = False
    """Whether masks were drawn."""
    keypoints: list[KeypointCounts] = field(default_factory=list)
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
        classes = ", ".join(
            f"{i}: {short_line(entry.name)}, {entry.category_id}, {entry.boxes}"
            for i, entry in enumerate(self.classes[:SHOWN])
        )
        more = f", {len(self.classes) - SHOWN} more" if len(self.classes) > SHOWN else ""
        first, *others = self.facts()
        return [first, f"classes (number: name, id in the file, boxes): {classes}{more}", *others]

    def facts(self) -> list[str]:
        """See `Report`."""
        lines = [
            f"{self.path} ({self.format}): {self.images} images ({self.without_boxes} negatives, "
            f"without boxes), {self.boxes} boxes ({self.crowd} crowd or difficult, untrained), "
            f"{len(self.classes)} classes"
        ]
        empty = [short_line(entry.name) for entry in self.classes if not entry.boxes]
        if empty:
            lines.append(f"no box of {len(empty)} classes: {', '.join(empty[:SHOWN])}")
        if self.keypoints:
            lines.append(
                f"{len(self.keypoints)} keypoints (name: visible, hidden, not labeled): "
                + "; ".join(
                    f"{short_line(x.name)}: {x.visible}, {x.hidden}, {x.unlabeled}"
                    for x in self.keypoints[:SHOWN]
                )
                + (f"; {len(self.keypoints) - SHOWN} more" * (len(self.keypoints) > SHOWN))
            )
        if self.masks:
            lines.append("every box that is not crowd has a mask")
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
