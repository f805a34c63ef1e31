"""report.html of a set of pseudo-labels: counts beside the labeled set's, histograms with the
thresholds, and pictures, those first whose labels hang most on where the threshold is."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from downstream.dense.drawing import (
    draw_boxes,
    draw_instances,
    draw_keypoints,
    draw_mask,
    legend_of,
    with_legend,
)
from downstream.detection.data.keypoints import Keypoints
from downstream.pseudo_label.boxes import Selection, kept, least_scores, summary
from downstream.pseudo_label.images import Index, decoded
from downstream.pseudo_label.labeled import Labeled
from downstream.pseudo_label.masks import Pixels
from downstream.pseudo_label.shards import Shards
from downstream.pseudo_label.teacher import BINS
from downstream.pseudo_label.thresholds import Threshold
from ssld.report import page, plots

DRAWN = 24
"""Pictures of each of the two lists."""
PICTURE_PX = 480
"""Longer side of a picture."""
LEFT_OUT_PX = 3
"""Width of the line around what is left out."""
HISTOGRAMS = 24
"""Classes whose histograms are drawn."""
ABSENT = "–"

Pictures = list[tuple[str, str, Callable[[], list[Markup]]]]
"""Heading, what is said below it, the pictures."""


@dataclass(frozen=True)
class Facts:
    """What all reports say."""

    out: Path
    names: Sequence[str]
    images: Index
    rows: Sequence[int]
    """Images that are annotated."""
    labeled: Labeled | None
    warnings: Sequence[str]
    remarks: Sequence[str]
    table: Sequence[tuple[str, str]]
    """Of what the set is made."""


class Drawer(Protocol):
    """Draws what was found in an image."""

    def __call__(self, row: int, pixels: np.ndarray) -> np.ndarray:
        """
        Args:
            pixels: uint8 [h, w, 3], the image, maybe made smaller.
        """
        ...


def write_box_report(
    facts: Facts, found: Shards, selection: Selection, keypoints: Keypoints | None
) -> None:
    """Of a detector's set."""
    nearest = _nearest(found, selection.classes, facts.names)
    histograms = [
        (name, np.histogram(scores, BINS, (0, 1))[0], one.score)
        for name, one, scores in zip(facts.names, selection.classes, selection.scores, strict=True)
    ]
    points = selection.keypoints
    if points is not None and selection.point_scores is not None:
        counts = np.histogram(selection.point_scores, BINS, (0, 1))[0]
        histograms.append(("keypoints of kept instances", counts, points.score))
    _write(
        facts,
        counts=_count_rows(facts, selection),
        count_head=("class", "labeled", "per image", "threshold", "predicted", "pseudo-labels",
                    "per image"),
        lead=summary(selection, len(facts.rows)),
        count_note=(
            (f"The labeled set has {facts.labeled.instances:,} in {facts.labeled.images:,} images."
             if facts.labeled else "No labeled set is known.")
            + " An image in which nothing is kept tells a student that nothing is there."
            * (selection.empty > 0)
        ),
        histograms=histograms,
        histogram_note="Of all that was found; what is right of the line is a pseudo-label.",
        scores="score",
        doubtful=[(row, said) for row, (_, said) in sorted(nearest.items(), key=_doubt)],
        doubtful_note=(
            "the instance that is nearest to the threshold of its class; one that is left out "
            "is in black and white"
        ),
        draw=_BoxDrawer(found, facts, selection, keypoints),
    )  # fmt: skip


def _doubt(entry: tuple[int, tuple[float, str]]) -> tuple[float, int]:
    row, (distance, _) = entry
    return distance, row


def _count_rows(facts: Facts, selection: Selection) -> list[list[str]]:
    rows, labeled, images = [], facts.labeled, len(facts.rows)
    for k, (name, one) in enumerate(zip(facts.names, selection.classes, strict=True)):
        human = [f"{labeled.counts[k]:,}", _ratio(labeled.counts[k], labeled.images)] if labeled \
            else [ABSENT, ABSENT]  # fmt: skip
        rows.append([name, *human, *_threshold_cells(one), _ratio(one.kept, images)])
    points = selection.keypoints
    if points is not None:
        human = [ABSENT, ABSENT]
        if labeled is not None:
            human = [f"{labeled.keypoints:,}", _ratio(labeled.keypoints, labeled.images)]
        rows.append(["keypoints", *human, *_threshold_cells(points), _ratio(points.kept, images)])
    return rows


def _threshold_cells(one: Threshold) -> list[str]:
    score = "nothing is kept" if one.score is None else f"{one.score:.4f}"
    return [score, f"{one.predicted:,}", f"{one.kept:,}"]


def _ratio(count: int, images: int) -> str:
    return f"{count / images:.2f}" if images else ABSENT


def _nearest(
    found: Shards, classes: Sequence[Threshold], names: Sequence[str]
) -> dict[int, tuple[float, str]]:
    """Of each image in which there is something: how far from its threshold the nearest instance
    is, and a sentence about it."""
    nearest: dict[int, tuple[float, str]] = {}
    for table in found.tables():
        rows, labels, scores = (table[x].to_numpy() for x in ("row", "label", "score"))
        least, sure = least_scores(classes)[labels], kept(table, classes)
        distances = abs(scores - least)
        order = np.lexsort((distances, rows))
        for i in order[np.unique(rows[order], return_index=True)[1]].tolist():
            if np.isfinite(distances[i]):
                verdict = "kept" if sure[i] else "left out"
                said = f"{names[labels[i]]} {scores[i]:.3f}, threshold {least[i]:.3f}: {verdict}"
                nearest[int(rows[i])] = (float(distances[i]), said)
    return nearest


class _BoxDrawer:
    """Draws the instances that are kept, and in black and white the nearest to its threshold if
    it is not."""

    def __init__(
        self, found: Shards, facts: Facts, selection: Selection, keypoints: Keypoints | None
    ) -> None:
        self.facts, self.selection, self.keypoints = facts, selection, keypoints
        self.found = found
        self.piece = {
            row: shard.number for shard in facts.images.images.shards for row in shard.rows
        }

    def __call__(self, row: int, pixels: np.ndarray) -> np.ndarray:
        table = _rows(self.found.table(self.piece[row]), row)
        sure = kept(table, self.selection.classes)
        height, width = self.facts.images.size[row]
        scale = np.array([pixels.shape[1] / width, pixels.shape[0] / height])
        drawn = self._left_out(table, sure, pixels, scale)
        mine = table.filter(pa.array(sure)).to_pylist()
        if not mine:
            return drawn
        labels = [x["label"] for x in mine]
        if mine[0]["mask"] is not None:
            masks = [{"size": [height, width], "counts": x["mask"]} for x in mine]
            drawn = draw_instances(drawn, masks, labels)
        boxes = np.array([x["box"] for x in mine]) * np.tile(scale, 2)
        scores = [x["score"] for x in mine]
        drawn = draw_boxes(drawn, boxes, labels, self.facts.names, scores)
        if self.keypoints is not None and mine[0]["keypoints"] is not None:
            drawn = self._points(mine, drawn, scale)
        legend = legend_of(self.facts.names)
        return with_legend(drawn, [legend[i] for i in sorted(set(labels))])

    def _left_out(
        self, table: pa.Table, sure: np.ndarray, pixels: np.ndarray, scale: np.ndarray
    ) -> np.ndarray:
        least = least_scores(self.selection.classes)[table["label"].to_numpy()]
        distances = abs(table["score"].to_numpy() - least)
        if not len(distances) or sure[distances.argmin()] or not np.isfinite(distances.min()):
            return pixels
        image = Image.fromarray(pixels)
        box = (np.array(table["box"][int(distances.argmin())].as_py()) * np.tile(scale, 2)).tolist()
        for colour, width in (("white", LEFT_OUT_PX), ("black", 1)):  # to be seen on any picture
            ImageDraw.Draw(image).rectangle(box, outline=colour, width=width)
        return np.asarray(image)

    def _points(self, mine: list[dict[str, Any]], drawn: np.ndarray, scale: np.ndarray):
        assert self.keypoints is not None
        points = np.array([x["keypoints"] for x in mine], np.float64).reshape(len(mine), -1, 3)
        points[..., :2] *= scale
        least = self.selection.keypoints.score if self.selection.keypoints else None
        sure = points[..., 2].astype(np.float32) >= np.float32(2 if least is None else least)
        points[..., 2] = np.where(sure, 2, 0)
        return draw_keypoints(drawn, points, self.keypoints)


def write_mask_report(
    facts: Facts, found: Shards, pixels: Pixels, palette: np.ndarray, least: float
) -> None:
    """Of a segmenter's set."""
    histograms = [(name, pixels.histogram[k], least) for k, name in enumerate(facts.names)]
    doubtful = sorted(pixels.near.items(), key=lambda entry: (-entry[1], entry[0]))
    ignored = pixels.counts[-1] / pixels.counts.sum()
    _write(
        facts,
        lead=f"{len(facts.rows):,} images, {ignored:.1%} of their pixels ignored",
        counts=_pixel_rows(facts, pixels),
        count_head=("class", "labeled: share of the pixels", "pseudo-labels: share", "pixels"),
        count_note=f"{ignored:.1%} of all pixels are below {least:g}, and are ignored.",
        histograms=histograms,
        histogram_note="Probabilities of the best class; pixels left of the line are ignored.",
        scores="probability",
        doubtful=[
            (row, f"{share:.0%} of the pixels within .1 of the threshold")
            for row, share in doubtful
        ],
        doubtful_note="how much of it is near the threshold; what keeps its colours is ignored",
        draw=_MaskDrawer(found, facts, palette),
    )


def _pixel_rows(facts: Facts, pixels: Pixels) -> list[list[str]]:
    labeled, known = facts.labeled, pixels.counts[:-1]
    total = max(labeled.instances, 1) if labeled else 1
    return [
        [
            name,
            f"{labeled.counts[k] / total:.2%}" if labeled else ABSENT,
            f"{known[k] / max(known.sum(), 1):.2%}",
            f"{known[k]:,}",
        ]
        for k, name in enumerate(facts.names)
    ]


def _rows(table: pa.Table, row: int) -> pa.Table:
    """What was found in one image."""
    return table.filter(pa.array(table["row"].to_numpy() == row))


class _MaskDrawer:
    """Draws the classes of pixels."""

    def __init__(self, found: Shards, facts: Facts, palette: np.ndarray) -> None:
        self.found, self.palette, self.names = found, palette, facts.names
        self.piece = {
            row: shard.number for shard in facts.images.images.shards for row in shard.rows
        }

    def __call__(self, row: int, pixels: np.ndarray) -> np.ndarray:
        (found,) = _rows(self.found.table(self.piece[row]), row).to_pylist()
        mask = np.asarray(
            Image.open(io.BytesIO(found["mask"])).resize(
                pixels.shape[1::-1], Image.Resampling.NEAREST
            )
        )
        legend = list(zip(self.names, self.palette.tolist(), strict=True))
        there = [i for i in np.unique(mask).tolist() if i < len(legend)]
        return with_legend(draw_mask(pixels, mask, self.palette), [legend[i] for i in there])


def _write(
    facts: Facts,
    *,
    lead: str,
    counts: Sequence[Sequence[str]],
    count_head: Sequence[str],
    count_note: str,
    histograms: Sequence[tuple[str, np.ndarray, float | None]],
    histogram_note: str,
    scores: str,
    doubtful: Sequence[tuple[int, str]],
    doubtful_note: str,
    draw: Drawer,
) -> None:
    there = [x for x in histograms if x[1].any()]
    first = sorted(there, key=lambda x: -int(x[1].sum()))[:HISTOGRAMS]
    if len(first) < len(there):
        histogram_note += f" The {HISTOGRAMS} most frequent of {len(there)}."
    shown = doubtful[:DRAWN]
    step = max(1, len(facts.rows) / DRAWN)
    spread = [facts.rows[int(i * step)] for i in range(min(DRAWN, len(facts.rows)))]
    pictures: Pictures = [
        (
            "Most doubtful",
            f"{len(shown)} of {len(facts.rows):,} images, the most doubtful first. Above each, "
            f"{doubtful_note}.",
            lambda: _pictures(facts, shown, draw),
        ),
        (
            "A sample",
            f"{len(spread)} of {len(facts.rows):,} images, evenly spread over their order, "
            "whatever was found in them.",
            lambda: _pictures(facts, [(row, "") for row in spread], draw),
        ),
    ]
    page.write_page(
        facts.out / "report.html",
        "downstream/pseudo_label/report.html",
        title="Pseudo-labels",
        lead=lead,
        warnings=facts.warnings,
        remarks=facts.remarks,
        counts=counts,
        count_head=count_head,
        count_note=count_note,
        histogram_title="Scores and thresholds",
        histogram_note=histogram_note,
        histograms=lambda: [
            page.plot(name, _histogram(x, least, scores)) for name, x, least in first
        ],
        pictures=pictures,
        facts=facts.table,
    )


def _histogram(counts: np.ndarray, least: float | None, of: str) -> Figure:
    figure = plots.new_figure()
    plot = plots.axes(figure, of)
    middles = (np.arange(BINS) + 0.5) / BINS
    plot.bar(middles, counts, width=1 / BINS, color=plots.COLOURS[0], log=True)
    # matplotlib's own labels are formulas, which our plots do not show
    plot.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    plot.yaxis.set_minor_formatter(lambda *_: "")
    if least is not None:
        plot.axvline(least, color=plots.COLOURS[1], lw=1.5)
    plot.set_xlim(0, 1)
    return figure


def _pictures(facts: Facts, shown: Sequence[tuple[int, str]], draw: Drawer) -> list[Markup]:
    return list(_drawn(facts, shown, draw))


def _drawn(facts: Facts, shown: Sequence[tuple[int, str]], draw: Drawer) -> Iterator[Markup]:
    for row, said in shown:
        pixels = decoded(facts.images.images.address(row))
        name = facts.images.sample_id(row)
        caption = f"{name}: {said}" if said else name
        if isinstance(pixels, Exception):
            continue
        image = Image.fromarray(pixels)
        image.thumbnail((PICTURE_PX, PICTURE_PX))
        picture = draw(row, np.asarray(image))
        yield page.photograph(caption, picture)
