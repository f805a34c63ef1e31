"""What the report of a detection run says of its evaluations: curves, and tables of the last."""

from __future__ import annotations

from collections.abc import Sequence

from downstream.dense.report import Table
from downstream.detection.average_precision import Detections
from downstream.detection.coco_protocol import BOXES
from downstream.detection.oks import sigmas_line
from ssld.report.training import Plots


def curves(detections: Detections) -> Plots:
    """Average precision over steps, and that of objects by size."""
    plots, share = [], {"low": 0, "high": 1.02}
    for similarity in detections.measured:
        prefix, of = similarity.prefix, "" if similarity == BOXES else f" of {similarity.of}"
        names = {f"{prefix}{key}": key.upper() for key in ("ap", "ap50", "ap75")}
        plots.append((f"average precision{of}", names, share))
        sizes = {f"{prefix}ap_{size}": size for size in similarity.areas[1:]}
        plots.append((f"AP{of} by size of the object", sizes, share))
    return plots


def by_class(detections: Detections) -> tuple[list[list[str]], list[str]]:
    """Rows and head of a table."""
    rows, head = [[name] for name in detections.class_names], ["class"]
    found = detections.by_class()
    for similarity in detections.measured:
        prefix, of = similarity.prefix, "" if similarity == BOXES else f"{similarity.of}: "
        head += [f"{of}objects", f"{of}AP", f"{of}AP50"]
        for row, of_class in zip(rows, found, strict=True):
            row.append(f"{of_class[f'{prefix}objects']:,}")
            row += [_share(of_class[f"{prefix}{key}"], "no object") for key in ("ap", "ap50")]
    return rows, head


def by_keypoint(
    detections: Detections, names: Sequence[str], oks_sigmas: float | Sequence[float] | None
) -> Table:
    """Which keypoint is how far off.

    Args:
        names: of the keypoints.
        oks_sigmas: `test.oks_sigmas`.
    """
    facts = zip(names, detections.similarity.sigmas, detections.by_keypoint(), strict=True)
    rows = [
        [name, f"{sigma:g}", f"{row['labeled']:,}", f"{row['found']:,}"]
        + [_share(row[key], "none") for key in ("near", "median")]
        for name, sigma, row in facts
    ]
    head = ["keypoint", "sigma", "labeled", "in found objects", "near", "median distance"]
    note = (
        "Found: a box of the class overlaps the object's by half, whatever its score. Distances "
        "are over the square root of the object's area; near is the share within 2 sigma, where a "
        "keypoint's similarity is .61 or more. "
        f"Here is {sigmas_line(names, oks_sigmas)}."
    )
    return "By keypoint, at the last evaluation", rows, head, note


def _share(value: float | None, otherwise: str) -> str:
    return otherwise if value is None else f"{value:.3f}"
