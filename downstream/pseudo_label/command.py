"""`ssld pseudo-label RUN --images SOURCES --out DIR`: annotations by a trained network.

DIR/annotations.json      of a detector: COCO's format, with scores; or of a segmenter
DIR/masks, classes.json   PNG of class numbers, 255 where the network is not sure
DIR/images.parquet        where each image lies: a manifest, nothing is copied
DIR/pseudo_labels.json    teacher, settings, thresholds, counts, sha256 of these files; written last
DIR/report.html           counts, histograms, pictures
DIR/index, predictions    what a resumed command goes on from: hashes of all images, and all that
                          was found in them, before the threshold

`data.generated: [DIR]` of `ssld detection` and `ssld segmentation` trains on it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
from tqdm import tqdm

from downstream.dense.generated import ANNOTATIONS, IMAGES
from downstream.pseudo_label import boxes, masks
from downstream.pseudo_label.config import PseudoLabelConfig
from downstream.pseudo_label.images import (
    Chosen,
    Index,
    Reader,
    build_index,
    choose,
    decoded,
)
from downstream.pseudo_label.labeled import (
    Labeled,
    categories,
    open_labeled,
    open_val,
    paths_of,
)
from downstream.pseudo_label.manifest import (
    begin,
    compare_state,
    is_complete,
    state_of,
    write_images,
    write_manifest,
)
from downstream.pseudo_label.shards import Shards, Work
from downstream.pseudo_label.teacher import (
    Description,
    Detector,
    Segmenter,
    Teacher,
    describe,
    open_teacher,
)
from ssld.common.errors import InputError, Interrupted
from ssld.common.files import locked
from ssld.curate.context import key
from ssld.curate.sets.images import ImageSet
from ssld.data.source import Source
from ssld.engine.loop import lost_process

VERSION = 1
"""Of what a prediction says."""


@contextlib.contextmanager
def _lost_processes() -> Iterator[None]:
    """
    Raises:
        Interrupted: another process of this command is gone.
    """
    try:
        yield
    except RuntimeError as error:
        lost = lost_process(error)
        if lost is None:
            raise
        message = str(lost).replace("of this run", "of this command")
        message = message.replace("go on with --resume", "the same command goes on")
        raise Interrupted(message) from error


@_lost_processes()
def pseudo_label(config: PseudoLabelConfig) -> None:
    """Annotate what is not annotated yet, then write the set.

    Raises:
        InputError: bad settings, sources or network; held-out images among those to annotate;
            nothing above the threshold; a folder of another set. What was predicted stays.
        Interrupted: another process is gone; the same command goes on.
    """
    work = Work(Path(config.out))
    description = describe(config.run)
    labeled_paths, val_paths, part = paths_of(config, description)
    labeled = open_labeled(labeled_paths, part, description)
    val = open_val(val_paths, description)
    sets = {"images": ImageSet("images", config.images, config.shard_size)}
    for name, sources in (("labeled", labeled.sources if labeled else ()), ("val", val)):
        if sources:
            sets[name] = ImageSet(name, cast("list[Source]", sources), config.shard_size)
    teacher = open_teacher(description, config, work.processes.device)
    with _opened(work):
        state = state_of(config, description, teacher.views, sets)
        same = compare_state(work.out, state, config.overwrite)
        complete = same and is_complete(work.out)
        work.processes.wait()
        if complete:
            work.say(f"{work.out}: complete, nothing to do")
            return
        if work.main and not same:
            begin(work.out, state)
        work.processes.wait()
        _run(work, config, description, teacher, sets, labeled)


@contextlib.contextmanager
def _opened(work: Work) -> Iterator[None]:
    """The folder, by one command at a time.

    Raises:
        InputError: it cannot be made, or another command is at work in it.
    """
    with locked(work.out) if work.main else contextlib.nullcontext():
        work.processes.wait()
        yield


def _run(
    work: Work,
    config: PseudoLabelConfig,
    description: Description,
    teacher: Detector | Segmenter,
    sets: dict[str, ImageSet],
    labeled: Labeled | None,
) -> None:
    reader = Reader(config.workers)
    indexes = {name: build_index(work, images, reader) for name, images in sets.items()}
    images = indexes["images"]
    chosen = choose(config, work, images, indexes.get("labeled"), indexes.get("val"))
    for line in _remarks(chosen, images, indexes):
        work.say(line)
    found = annotate(work, description, teacher, images, chosen, reader)
    facts = (work, config, description)
    if isinstance(teacher, Segmenter):
        _write_masks(*facts, teacher, indexes, chosen, labeled, found)
    else:
        _write_boxes(*facts, teacher, indexes, chosen, labeled, found)
    work.processes.wait()


def _remarks(chosen: Chosen, images: Index, indexes: dict[str, Index]) -> list[str]:
    lines = []
    if "val" not in indexes:
        lines.append(
            "note: no held-out set is known, so nothing tells whether such images are among these; "
            "give --val"
        )
    if chosen.labeled:
        lines.append(
            f"left out: {len(chosen.labeled)} of {len(images)} images have human annotations, by "
            f"their bytes or pixels ({images.sample_id(chosen.labeled[0])} for one)"
        )
    if chosen.twice:
        lines.append(
            f"note: {len(chosen.twice)} images are the same picture as another one "
            f"({images.sample_id(chosen.twice[0])} for one), and are annotated, too"
        )
    return lines


def annotate(
    work: Work,
    description: Description,
    teacher: Teacher,
    images: Index,
    chosen: Chosen,
    reader: Reader,
) -> Shards:
    """Stage `predictions`: what the network finds in each image.

    Raises:
        InputError: an image cannot be read any more.
    """
    wanted = set(chosen.rows)
    pieces = [[row for row in shard.rows if row in wanted] for shard in images.images.shards]
    base = key(VERSION, description.sha256, teacher.views, str(teacher.schema), _least(teacher))
    keys = [key(base, *((row, images.sums(row)) for row in rows)) for rows in pieces]
    shards = Shards(work.out / "predictions", description.task, keys)

    def make(number: int, bar: tqdm) -> pa.Table:
        rows = pieces[number]
        made: dict[str, list[Any]] = {name: [] for name in teacher.schema.names}
        addresses = [images.images.address(row) for row in rows]
        for row, (_, pixels) in zip(rows, reader.map(decoded, addresses), strict=True):
            if isinstance(pixels, Exception):
                raise InputError(
                    f"{images.images.location(row)} could be read before, and now cannot "
                    f"({pixels}); the same command goes on"
                ) from pixels
            for entry in teacher.find(pixels):
                for name in made:
                    made[name].append(row if name == "row" else entry[name])
            bar.update()
        return pa.table(made, teacher.schema)

    work.fill("annotate", shards, [len(rows) for rows in pieces], make)
    return shards


def _least(teacher: Teacher) -> float | None:
    return teacher.least if isinstance(teacher, Segmenter) else None


def _write_boxes(
    work: Work,
    config: PseudoLabelConfig,
    description: Description,
    teacher: Detector,
    indexes: dict[str, Index],
    chosen: Chosen,
    labeled: Labeled | None,
    found: Shards,
) -> None:
    names = description.class_names
    selection = boxes.select(config, found, chosen, labeled, len(names))
    warned = boxes.warnings(selection, labeled, names, len(chosen.rows))
    if not work.main:
        return
    images, keypoints = indexes["images"], description.content.get("keypoints")
    classes = categories(labeled, names)
    write_images(work.out, images, chosen, None)
    boxes.write_annotations(work.out, found, images, chosen, selection, classes, keypoints)
    remarks = [
        f"{name}: {one.remark}"
        for name, one in zip(names, selection.classes, strict=True)
        if one.remark and config.threshold == "count"
    ]
    points = selection.keypoints
    if points and points.remark and config.keypoint_threshold == "count":
        remarks.append(f"keypoints: {points.remark}")
    facts = {
        "instances": selection.kept,
        "keypoints": asdict(points) if points else None,
        "remarks": remarks,
        "warnings": warned,
    }
    for line in remarks:
        work.say(f"note: {line}")
    for line in warned:
        work.say(f"warning: {line}")
    finds = "keypoints" if points else "masks" if _has_masks(found) else "boxes"
    write_manifest(
        work.out, config, description, teacher.views, indexes=indexes, chosen=chosen,
        labeled=labeled, finds=finds, thresholds=selection.classes, facts=facts,
        files=[ANNOTATIONS, IMAGES],
    )  # fmt: skip
    work.say(
        f"{work.out / ANNOTATIONS}: {selection.kept:,} annotations of {len(chosen.rows):,} images"
    )


def _has_masks(found: Shards) -> bool:
    return any(table["mask"].null_count < len(table) for table in found.tables())


def _write_masks(
    work: Work,
    config: PseudoLabelConfig,
    description: Description,
    teacher: Segmenter,
    indexes: dict[str, Index],
    chosen: Chosen,
    labeled: Labeled | None,
    found: Shards,
) -> None:
    names, images = description.class_names, indexes["images"]
    counts = masks.pixel_counts(found)
    warned = masks.warnings(counts, labeled, names, config.pixel_threshold)
    files = masks.mask_names(images, chosen)
    masks.write_masks(work, found, chosen, files)
    work.processes.wait()
    if not work.main:
        return
    write_images(work.out, images, chosen, files)
    masks.write_table(work.out, names, teacher.palette)
    pixels = dict(zip([*names, "ignored"], counts.tolist(), strict=True))
    for line in warned:
        work.say(f"warning: {line}")
    write_manifest(
        work.out, config, description, teacher.views, indexes=indexes, chosen=chosen,
        labeled=labeled, finds="pixels", thresholds=None, facts={"pixels": pixels,
        "warnings": warned}, files=[masks.TABLE, IMAGES],
    )  # fmt: skip
    work.say(
        f"{work.out / 'masks'}: masks of {len(chosen.rows):,} images, "
        f"{counts[-1] / counts.sum():.1%} of the pixels ignored"
    )
