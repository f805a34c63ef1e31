"""A set of generated boxes, keypoints or masks, from what a detector found: COCO's json.

A class number is the network's. Coordinates are px of the upright image; COCO's keypoints are
numbers of pixels, half a px less.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from downstream.dense.generated import ANNOTATIONS
from downstream.detection.data.keypoints import Keypoints
from downstream.pseudo_label.config import PseudoLabelConfig
from downstream.pseudo_label.images import Chosen, Index, relative_names
from downstream.pseudo_label.labeled import Category, Labeled
from downstream.pseudo_label.manifest import Annotated
from downstream.pseudo_label.shards import Shards
from downstream.pseudo_label.teacher import PX_DIGITS
from downstream.pseudo_label.thresholds import Threshold, threshold, wanted_count
from ssld.common.errors import InputError
from ssld.common.files import write_atomically
from ssld.data.storage import is_remote

VANISHED = 0.1
"""Share of the instances that the labeled set makes one expect, below which a class is noticed."""

UNSURE = 0.1
"""Score below which a threshold that matches counts is noticed: most of what is kept is guessed."""


@dataclass(frozen=True)
class Selection:
    """What is kept of what was found."""

    classes: list[Threshold]
    """By class number."""
    keypoints: Threshold | None
    scores: list[np.ndarray]
    """float32, of all that was found, by class number."""
    point_scores: np.ndarray | None
    """float32, of the keypoints of what is kept."""
    empty: int
    """Images in which nothing is kept: a student learns from them that nothing is there."""

    @property
    def kept(self) -> int:
        return sum(x.kept for x in self.classes)


def select(
    config: PseudoLabelConfig, found: Shards, chosen: Chosen, labeled: Labeled | None, classes: int
) -> Selection:
    """Thresholds by class, and one of keypoints.

    Raises:
        InputError: there is nothing to match counts with.
    """
    labels, scores = _columns(found)
    by_class = [scores[labels == k] for k in range(classes)]
    wanted = [
        wanted_count(labeled.counts[k], labeled.images, len(chosen.rows)) if labeled else None
        for k in range(classes)
    ]
    if "count" in (config.threshold, config.keypoint_threshold) and labeled is None:
        raise InputError(
            "threshold is count, and no labeled set is known whose counts could be matched: give "
            "--labeled, or numbers as --threshold and --keypoint_threshold"
        )
    limits = [threshold(by_class[k], wanted[k], config.threshold) for k in range(classes)]
    points, instances = _point_scores(found, limits)
    least = None
    if points is not None:
        most = None
        if labeled is not None:
            most = wanted_count(labeled.keypoints, max(1, labeled.instances), instances)
        least = threshold(points, most, config.keypoint_threshold)
    filled = sum(len(np.unique(x["row"].to_numpy()[kept(x, limits)])) for x in found.tables())
    return Selection(limits, least, by_class, points, len(chosen.rows) - filled)


def summary(selection: Selection, images: int) -> str:
    """`107 annotations of 97 images, threshold of scores 0.476; none in 5 of them`"""
    scores = sorted({f"{x.score:.3f}" for x in selection.classes if x.score is not None})
    thresholds = f"threshold of scores {scores[0]}"
    if len(scores) > 1:
        thresholds = f"thresholds of scores {scores[0]} to {scores[-1]} by class"
    return f"{selection.kept:,} annotations of {images:,} images, {thresholds}" + (
        f"; none in {selection.empty:,} of them" if selection.empty else ""
    )


def _columns(found: Shards) -> tuple[np.ndarray, np.ndarray]:
    """int32 [n] and float32 [n]."""
    tables = [table.select(["label", "score"]) for table in found.tables()]
    whole = pa.concat_tables(tables)
    return whole["label"].to_numpy(), whole["score"].to_numpy()


def least_scores(classes: Sequence[Threshold]) -> np.ndarray:
    """By class number, float32 [classes]; infinite where nothing is kept."""
    return np.array([np.inf if x.score is None else x.score for x in classes], np.float32)


def kept(table: pa.Table, classes: Sequence[Threshold]) -> np.ndarray:
    """Which rows become annotations, bool [n]."""
    return table["score"].to_numpy() >= least_scores(classes)[table["label"].to_numpy()]


def _point_scores(found: Shards, classes: Sequence[Threshold]) -> tuple[np.ndarray | None, int]:
    """Scores of the keypoints of instances that are kept, float32, None of a detector that finds
    none; and how many instances these are."""
    parts, instances, has_keypoints = [np.empty(0, np.float32)], 0, False
    for table in found.tables():
        has_keypoints |= table["keypoints"].null_count < len(table)
        points = table["keypoints"].filter(pa.array(kept(table, classes))).combine_chunks()
        parts.append(points.flatten().to_numpy()[2::3])
        instances += len(points) - points.null_count
    return (np.concatenate(parts) if has_keypoints else None), instances


def warnings(
    config: PseudoLabelConfig,
    selection: Selection,
    labeled: Labeled | None,
    names: Sequence[str],
    images: int,
) -> list[str]:
    """What a user should look at.

    Raises:
        InputError: nothing is kept at all.
    """
    if not selection.kept:
        best = max((float(x.max()) for x in selection.scores if len(x)), default=None)
        found = f"the best score is {best:.4g}" if best is not None else "nothing was found at all"
        raise InputError(
            f"no pseudo-label in {images} images reaches its threshold ({found}): lower "
            "--threshold, or give a network that has learned, or images like those that it "
            "learned from"
        )
    lines = []
    for k, (name, one) in enumerate(zip(names, selection.classes, strict=True)):
        if labeled is not None and labeled.counts[k] and one.wanted is not None:
            if one.kept == 0:
                lines.append(
                    f"class {name!r} has vanished: the labeled set has {labeled.counts[k]} "
                    f"instances in {labeled.images} images, the pseudo-labels none"
                )
            elif one.kept < VANISHED * one.wanted:
                lines.append(
                    f"class {name!r} has nearly vanished: {one.kept} pseudo-labels, of "
                    f"{one.wanted} that the labeled set makes one expect"
                )
            elif config.threshold == "count" and one.score is not None and one.score < UNSURE:
                lines.append(
                    f"class {name!r}: as many as the labeled set has are only there from a score "
                    f"of {one.score:.3f} on, so most may be wrong: train the teacher longer, or "
                    "give a --threshold"
                )
    present = [name for name, one in zip(names, selection.classes, strict=True) if one.kept]
    several = labeled is not None and sum(count > 0 for count in labeled.counts) > 1
    if several and len(present) == 1:
        lines.append(
            f"all pseudo-labels are of one class, {present[0]!r}: a network that is trained on "
            "them learns that the others are background"
        )
    points = selection.keypoints
    if points is not None and points.kept == 0:
        lines.append(f"no keypoint reaches its threshold, of {points.predicted} that are predicted")
    return lines


def remarks(config: PseudoLabelConfig, selection: Selection, names: Sequence[str]) -> list[str]:
    """Counts that are not those that were to be matched, and why."""
    lines = []
    if config.threshold == "count":
        lines += [
            f"class {name!r}: {one.remark}"
            for name, one in zip(names, selection.classes, strict=True)
            if one.remark
        ]
    points = selection.keypoints
    if points and points.remark and config.keypoint_threshold == "count":
        lines.append(f"keypoints: {points.remark}")
    return lines


def write_annotations(
    done: Annotated,
    selection: Selection,
    categories: Sequence[Category],
    keypoints: Keypoints | None,
) -> None:
    """Write annotations.json.

    Args:
        keypoints: that the network finds.
    """
    images, chosen = done.images, done.chosen
    folder = image_folder(images, chosen.rows)
    numbers = {row: i + 1 for i, row in enumerate(chosen.rows)}
    names = _names(images, chosen.rows, folder)
    info: dict[str, Any] = {"description": "generated by ssld pseudo-label", "version": "1"}
    if folder is not None:
        info["images"] = folder
    parts = {
        "images": (
            _image(number, name, images.size[row])
            for (row, number), name in zip(numbers.items(), names, strict=True)
        ),
        "annotations": _annotations(done.found, images, numbers, selection, categories),
        "categories": (_category(category, keypoints) for category in categories),
    }

    def write(file: BinaryIO) -> None:
        file.write(f'{{"info": {json.dumps(info)}'.encode())
        for name, entries in parts.items():
            file.write(f',\n"{name}": ['.encode())
            _write_list(file, entries)
            file.write(b"]")
        file.write(b"}\n")

    write_atomically(done.out / ANNOTATIONS, write)


def _write_list(file: BinaryIO, entries: Iterable[dict[str, Any]]) -> None:
    for i, entry in enumerate(entries):
        file.write(b",\n" if i else b"\n")
        file.write(json.dumps(entry).encode())


def image_folder(images: Index, rows: Sequence[int]) -> str | None:
    """The folder to which file names are relative; None where images are no local files of their
    own."""
    addresses = [images.images.address(row) for row in rows]
    if any(is_remote(x.path) or x.offset is not None for x in addresses):
        return None
    sources = images.images.sources
    if len(sources) == 1 and os.path.isdir(sources[0].path):
        return os.path.abspath(sources[0].path)
    return os.path.commonpath([os.path.dirname(x.path) for x in addresses])


def _names(images: Index, rows: Sequence[int], folder: str | None) -> list[str]:
    """`file_name` of each image: its id as a relative path, where it is no file of its own."""
    if folder is None:
        return relative_names(map(images.sample_id, rows))
    return [os.path.relpath(images.images.address(row).path, folder) for row in rows]


def _image(number: int, name: str, size: tuple[int, int]) -> dict[str, Any]:
    height, width = size
    return {"id": number, "file_name": name, "width": width, "height": height}


def _category(category: Category, keypoints: Keypoints | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": category.id, "name": category.name}
    if keypoints is not None:
        names = keypoints.names
        entry["keypoints"] = list(names)
        entry["skeleton"] = [[a + 1, b + 1] for a, b in keypoints.skeleton]
        entry["flip_pairs"] = [[names[a], names[b]] for a, b in keypoints.flip_pairs]
    return entry


def _annotations(
    found: Shards,
    images: Index,
    numbers: dict[int, int],
    selection: Selection,
    categories: Sequence[Category],
) -> Iterator[dict[str, Any]]:
    number = 0
    least = selection.keypoints.score if selection.keypoints else None
    for table in found.tables():
        for row in table.filter(pa.array(kept(table, selection.classes))).to_pylist():
            number += 1
            x1, y1, x2, y2 = row["box"]
            width, height = round(x2 - x1, PX_DIGITS), round(y2 - y1, PX_DIGITS)
            entry = {
                "id": number,
                "image_id": numbers[row["row"]],
                "category_id": categories[row["label"]].id,
                "bbox": [x1, y1, width, height],
                "area": round(width * height, PX_DIGITS),
                "iscrowd": 0,
                "score": _short(row["score"]),
            }
            if row["mask"] is not None:
                entry |= _mask(row["mask"], images.size[row["row"]])
            if row["keypoints"] is not None:
                entry |= _keypoints(row["keypoints"], least)
            yield entry


def _short(score: float) -> float:
    """The shortest number that is the same float32."""
    return float(str(np.float32(score)))


def _mask(counts: bytes, size: tuple[int, int]) -> dict[str, Any]:
    from faster_coco_eval import mask  # an extra

    area = int(mask.area({"size": list(size), "counts": counts}))
    return {"segmentation": {"size": list(size), "counts": counts.decode("ascii")}, "area": area}


def _keypoints(values: list[float], least: float | None) -> dict[str, Any]:
    """x, y of pixels and visibility, 2 where the score is high enough, else 0, 0, 0."""
    flat: list[float] = []
    for x, y, score in zip(values[::3], values[1::3], values[2::3], strict=True):
        if least is not None and np.float32(score) >= np.float32(least):
            flat += [round(x - 0.5, PX_DIGITS), round(y - 0.5, PX_DIGITS), 2]
        else:
            flat += [0, 0, 0]
    return {"keypoints": flat, "num_keypoints": sum(v > 0 for v in flat[2::3])}
