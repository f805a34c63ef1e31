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
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from downstream.dense.config import DownstreamConfig
from downstream.dense.generated import ANNOTATIONS, IMAGES, MANIFEST, MASKS, TABLE
from downstream.dense.sources import open_sources
from downstream.detection.data.boxes import open_boxes
from downstream.detection.data.keypoints import Keypoints
from downstream.pseudo_label import boxes, masks
from downstream.pseudo_label.annotate import annotate
from downstream.pseudo_label.config import PseudoLabelConfig
from downstream.pseudo_label.images import (
    Chosen,
    Index,
    Reader,
    build_index,
    choose,
)
from downstream.pseudo_label.labeled import (
    Labeled,
    categories,
    open_labeled,
    open_val,
    paths_of,
)
from downstream.pseudo_label.manifest import (
    Annotated,
    Made,
    begin,
    compare_state,
    is_complete,
    state_of,
    write_images,
    write_manifest,
)
from downstream.pseudo_label.report import Facts, write_box_report, write_mask_report
from downstream.pseudo_label.shards import Work
from downstream.pseudo_label.teacher import (
    Description,
    Detector,
    Segmenter,
    describe,
    open_teacher,
)
from downstream.segmentation.data.masks import open_masks
from ssld.common.errors import attempt
from ssld.common.files import locked
from ssld.curate.sets.images import ImageSet
from ssld.data.source import Source
from ssld.engine.loop import lost_processes


@lost_processes("command")
def pseudo_label(config: PseudoLabelConfig) -> None:
    """Annotate what is not annotated yet, then write the set.

    Raises:
        InputError: bad settings, sources or network; held-out images among those to annotate;
            nothing above the threshold; a folder of another set. What was predicted stays.
        Interrupted: another process is gone; the same command goes on.
    """
    work = Work(Path(config.out))
    description = describe(config.run)
    labeled_paths, val_paths, part, held_out = paths_of(config, description)
    labeled = open_labeled(labeled_paths, part, description)
    val = open_val(val_paths, held_out, description.task, description.class_names)
    sets = {"images": ImageSet("images", config.images, config.shard_size)}
    for name, sources in (("labeled", labeled.sources if labeled else ()), ("val", val)):
        if sources:
            sets[name] = ImageSet(name, cast("list[Source]", sources), config.shard_size)
    teacher = open_teacher(description, config, work.processes.device)
    with _opened(work):
        state = state_of(Made(config, description, teacher.views), sets, labeled)
        same = compare_state(work.out, state, config.overwrite)
        complete = same and is_complete(work.out, description.task)
        work.processes.wait()
        if complete:
            work.say(f"{work.out}: complete, nothing to do")
            return
        if work.main and not same:
            begin(work.out, state)
        work.processes.wait()
        _run(work, config, description, teacher, sets, labeled)


def check_images(config: PseudoLabelConfig, task: str, teacher: DownstreamConfig) -> None:
    """Refuse images that `pseudo_label` would refuse, before there is a network to annotate them;
    what is measured for that is kept. A set that is there is looked at by `pseudo_label`.

    Args:
        config: with all sets named that are held out; where none is, the network's run will hold
            some out of its training sets, the same as here.
        teacher: settings of that run.

    Raises:
        InputError: held-out images among those to annotate; too many that cannot be read; sources
            that the run would refuse.
    """
    work, data = Work(Path(config.out)), teacher.data
    if (work.out / MANIFEST).is_file():
        return
    if config.val:
        val = open_val(config.val, None, task, data.classes)
    elif task == "segmentation":
        val = open_sources(data, open_masks, teacher.seed).val
    else:
        val = open_sources(data, open_boxes, teacher.seed).val
    with _opened(work):
        reader = Reader(config.workers)
        sets = {"images": config.images, "val": cast("list[Source]", val)}
        images, held_out = (
            build_index(work, ImageSet(name, sources, config.shard_size), reader)
            for name, sources in sets.items()
        )
        choose(config, work, images, None, held_out)
        work.processes.wait()


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
    for line in _remarks(chosen, images, indexes, teacher.views):
        work.say(line)
    made = Made(config, description, teacher.views)
    found = annotate(work, made, teacher, images, chosen, reader)
    done = Annotated(work.out, made, indexes, chosen, labeled, found)
    if isinstance(teacher, Segmenter):
        _write_masks(work, done, teacher)
    else:
        _write_boxes(work, done, teacher.model.keypoints)
    work.processes.wait()


def _remarks(
    chosen: Chosen, images: Index, indexes: dict[str, Index], views: dict[str, Any]
) -> list[str]:
    lines = []
    if len(views["scales"]) == 1 and not views["flip"]:
        lines.append(
            "note: each image is seen in one view; test.scales and test.flip give it several, "
            "as Data Distillation does"
        )
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
            f"left out: {len(chosen.twice)} of {len(images)} images are the same picture as "
            f"another one ({images.sample_id(chosen.twice[0])} for one)"
        )
    return lines


def _write_boxes(work: Work, done: Annotated, keypoints: Keypoints | None) -> None:
    config, names, images = done.made.config, done.class_names, len(done.chosen.rows)
    selection = boxes.select(config, done.found, done.chosen, done.labeled, len(names))
    warned = boxes.warnings(config, selection, done.labeled, names, images)
    if not work.main:
        return
    write_images(done)
    boxes.write_annotations(done, selection, categories(done.labeled, names), keypoints)
    remarks = boxes.remarks(config, selection, names)
    said = _said(work, done, warned, remarks)
    attempt("report.html", lambda: write_box_report(said, done.found, selection, keypoints))
    facts = {
        "instances": selection.kept,
        "images_without": selection.empty,
        "keypoints": asdict(selection.keypoints) if selection.keypoints else None,
        "remarks": remarks,
        "warnings": warned,
    }
    write_manifest(done, selection.classes, facts, [ANNOTATIONS, IMAGES])
    work.say(f"{work.out / ANNOTATIONS}: {boxes.summary(selection, images)}")


def _write_masks(work: Work, done: Annotated, teacher: Segmenter) -> None:
    pixels = masks.count_pixels(done.found)
    warned = masks.warnings(pixels.counts, done.labeled, done.class_names, teacher.least)
    files = masks.mask_names(done.images, done.chosen)
    masks.write_masks(work, done.found, done.chosen, files)
    work.processes.wait()
    if not work.main:
        return
    write_images(done, dict(zip(files, masks.digests(done.found), strict=True)))
    masks.write_table(work.out, done.class_names, teacher.palette)
    said = _said(work, done, warned, [])
    attempt(
        "report.html",
        lambda: write_mask_report(said, done.found, pixels, teacher.palette, teacher.least),
    )
    counts = dict(zip([*done.class_names, "ignored"], pixels.counts.tolist(), strict=True))
    facts = {"pixels": counts, "warnings": warned}
    write_manifest(done, None, facts, [TABLE, IMAGES])
    work.say(
        f"{work.out / MASKS}: masks of {len(files):,} images, "
        f"{pixels.counts[-1] / pixels.counts.sum():.1%} of the pixels ignored"
    )


def _said(work: Work, done: Annotated, warned: list[str], remarks: list[str]) -> Facts:
    """Print what is noticed; for the report."""
    for line in remarks:
        work.say(f"note: {line}")
    for line in warned:
        work.say(f"warning: {line}")
    images, chosen, labeled, made = done.images, done.chosen, done.labeled, done.made
    left_out = {
        "cannot be read": len(chosen.unreadable),
        "have human annotations, left out": len(chosen.labeled),
        "are the same picture as another, left out": len(chosen.twice),
    }
    sources = ", ".join(source.path for source in images.images.sources)
    rows = [
        ("images", f"{sources}: {len(images):,}"),
        *((f"of which {what}", f"{count:,}") for what, count in left_out.items() if count),
        ("labeled set", ", ".join(labeled.paths) if labeled else "none is known"),
        ("network", json.dumps(made.description.facts)),
        ("settings", json.dumps({**made.config.deciding, "test": made.views})),
    ]
    return Facts(work.out, done.class_names, images, chosen.rows, labeled, warned, remarks, rows)
