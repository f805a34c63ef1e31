"""Train a detector: `accelerate launch -m downstream.detection --config F.yaml --backbone NAME`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from accelerate import Accelerator

from downstream.dense.classification import Classes, open_classes
from downstream.dense.drawing import legend_of
from downstream.dense.preflight import EXAMPLES, Readable, Report, findings
from downstream.dense.sources import Sources, open_sources
from downstream.dense.start import open_processes, start_run
from downstream.dense.training_views import write_training_views
from downstream.detection.coco_protocol import similarity_of
from downstream.detection.config import BoxAugmentConfig, DetectionConfig
from downstream.detection.data.boxes import BoxSource, open_boxes
from downstream.detection.data.geometry import CROP_SCALE, LEAST_SIDE_PX
from downstream.detection.data.keypoint_cleaning import common_keypoints
from downstream.detection.data.keypoints import Keypoints
from downstream.detection.heads.detector import MAX_DETECTIONS
from downstream.detection.inference import scaled_size
from downstream.detection.model import DetectionModel, build, on_backbone
from downstream.detection.networks import PREFIXES, detector
from downstream.detection.oks import sigmas_line
from downstream.detection.task import DetectionTask
from ssld.common.errors import InputError
from ssld.data.sampling import Order
from ssld.engine.loop import train
from ssld.engine.start import Run

Config = TypeVar("Config", bound=DetectionConfig)
Model = TypeVar("Model", bound=DetectionModel)


def detection(config: DetectionConfig) -> None:
    """Train on boxes, then export and report into `config.out`.

    Raises:
        InputError: bad settings, sources, backbone or launcher; nothing was written then.
    """
    run, task, model = opened(config)
    write_training_views(run, task.make_train, task.draw_view, legend_of(model.label_names or []))
    train(run, task, model)


def opened(config: DetectionConfig) -> tuple[Run, DetectionTask, DetectionModel]:
    """A run that is ready to begin, in its folder.

    Raises:
        InputError: as of `detection`.
    """
    accelerator = open_processes(config)
    sources = sources_of(config)
    config, model = model_for(config, sources, DetectionModel)
    classes = open_classes(config, model)
    run = run_of(config, accelerator, sources, model, classes)
    task = DetectionTask(sources, config.augment, config.test, config.detector, config.seed)
    return run, task.also(config, classes), model


def sources_of(config: DetectionConfig) -> Sources[BoxSource]:
    """Everything with boxes that a run names, opened. See `open_sources`."""
    masks = detector(config.detector.name).finds == "masks"
    return open_sources(config.data, partial(open_boxes, masks=masks), config.seed)


def model_for(
    config: Config, sources: Sources[BoxSource], kind: Callable[..., Model]
) -> tuple[Config, Model]:
    """The settings with all that they leave open, and the detector for the sources, in whose
    reports is noted what it will not learn or find.

    Args:
        kind: DetectionModel, or what is called as it is.

    Raises:
        InputError: as of `detection`.
    """
    val = sources.val
    keypoints = keypoints_of(config.detector.name, sources.seen, val)
    note_small(sources.seen, config.augment)
    note_other_ids(val)
    for height, width in {tuple(size) for source in val for size in source.sizes.tolist()}:
        if height:  # of the others the size is not known
            scaled_size((height, width), config.augment, max(config.test.scales))
    names = sources.train[0].class_names
    torch.manual_seed(config.seed)
    head = config.detector
    built = build(head.name, config.backbone, len(names), head.args, keypoints)
    model = kind(built, names, keypoints)
    if model.queries is not None:
        note_many(sources.seen, model.queries, "detector.args.num_queries has places for")
    similarity = similarity_of(detector(head.name).finds, keypoints, config.test.oks_sigmas)
    most = min(MAX_DETECTIONS, similarity.max_detections, model.queries or MAX_DETECTIONS)
    note_many(val, most, "are found in one")
    if keypoints:
        val[0].report.remarks.append(sigmas_line(keypoints.names, config.test.oks_sigmas))
    best = config.checkpoint.best or f"{PREFIXES[detector(head.name).finds]}ap"
    config = replace(
        config,
        data=replace(config.data, classes=names),
        checkpoint=replace(config.checkpoint, best=best),
    )
    return config, model


def run_of(
    config: DetectionConfig,
    accelerator: Accelerator,
    sources: Sources[BoxSource],
    model: DetectionModel,
    classes: Classes | None = None,
    *,
    unlabeled: Sequence[Readable] = (),
    reports: Sequence[Report] = (),
    order: Order | None = None,
    work: float = 1.0,
) -> Run:
    """The run folder of a detector; see `start_run`.

    Args:
        classes: labeled images besides, where there are any.
        unlabeled, reports: further images to train on, and what is known of them.
    """
    side = max(config.augment.sizes)
    size = (side, round(side * 4 / 3)) if config.augment.resize == "shorter" else (side, side)
    head = config.detector
    known: dict[str, Sequence[Report]] = {
        role: [x.report for x in part] for role, part in sources.by_role().items()
    }
    if unlabeled:
        known["unlabeled"] = reports
    return start_run(
        config, accelerator, sources, model, classes,
        task="detection", head=asdict(head), size=size, reports=known,
        build=lambda x, n: on_backbone(head.name, x, n, head.args, model.keypoints),
        annotations_sha256=[x.report.boxes_sha256 for x in (*sources.seen, *sources.val)],
        unlabeled=unlabeled, order=order, work=work,
    )  # fmt: skip


def keypoints_of(
    name: str, sources: Sequence[BoxSource], val: Sequence[BoxSource]
) -> Keypoints | None:
    """The keypoints that a detector of that name is to find, None of one that finds none. Notes
    those that it ignores.

    Raises:
        InputError: see `common_keypoints`.
    """
    if detector(name).finds == "keypoints":
        return common_keypoints(sources, val)
    for source in (*sources, *val):
        unused = [source.path] if source.keypoints else []
        source.report.noticed.extend(findings(f"keypoints that {name} does not use", unused))
    return None


def note_small(sources: Sequence[BoxSource], augment: BoxAugmentConfig) -> None:
    """Note boxes that training views make smaller than `LEAST_SIDE_PX`, which are dropped there.

    Raises:
        InputError: all are, in every view.
    """
    gone = total = 0
    largest = max(augment.sizes)
    part = CROP_SCALE[0] if augment.crop else 1.0  # the smallest, which is enlarged the most
    zoom = augment.scale[1] / part
    some_fitted = augment.mosaic > 0
    all_fitted = augment.mosaic == 1 and augment.mosaic_epochs is None
    for source in sources:
        counted = source.counted
        always = counted & (_sides(source, augment, largest, all_fitted) * zoom < LEAST_SIDE_PX)
        smallest = _sides(source, augment, min(augment.sizes), some_fitted) * augment.scale[0]
        smallest /= augment.expand
        sometimes = counted & (smallest < LEAST_SIDE_PX) & ~always
        where = f"under {LEAST_SIDE_PX:g} px"
        _note(source, f"boxes {where} in every training view, never learned from", always)
        _note(source, f"boxes {where} in the smallest training views, dropped there", sometimes)
        gone, total = gone + int(always.sum()), total + int(counted.sum())
    if gone == total:
        limited = augment.resize == "shorter" and augment.longest is not None
        longest = f" and augment.longest {augment.longest} px" if limited else ""
        raise InputError(
            f"data.train: all {total} boxes are under {LEAST_SIDE_PX:g} px in every training view, "
            f"so nothing would be learned; set a larger augment.sizes (now up to {largest} px"
            f"{longest}), or cut the images into tiles"
        )


def _sides(source: BoxSource, augment: BoxAugmentConfig, side: int, fitted: bool) -> np.ndarray:
    """The shorter side of each box in px of a view of a whole image, float64 [m]; see
    `transforms.view_size`.

    Args:
        fitted: as in a mosaic, with the longer side at `side`.
    """
    sizes = np.maximum(source.sizes[:, ::-1], 1).astype(np.float64)  # width, height
    if fitted or augment.resize == "longer":
        scale = np.repeat(side / sizes.max(1, keepdims=True), 2, axis=1)
    elif augment.resize == "square":
        scale = side / sizes
    else:
        one = side / sizes.min(1)
        if augment.longest is not None:
            one = np.minimum(one, augment.longest / sizes.max(1))
        scale = np.repeat(one[:, None], 2, axis=1)
    return ((source.xyxy[:, 2:] - source.xyxy[:, :2]) * scale[source.image]).min(1, initial=np.inf)


def note_many(sources: Sequence[BoxSource], most: int, what: str) -> None:
    """Note images with more than `most` boxes, of which the rest is never found."""
    for source in sources:
        counts = np.bincount(source.image[source.counted], minlength=len(source))
        over = np.flatnonzero(counts > most)
        beyond = int((counts[over] - most).sum())
        source.report.noticed.extend(
            findings(
                f"images with more boxes than the {most} that {what}, {beyond} boxes beyond",
                [f"{source.sample_id(i)!r}: {counts[i]}" for i in over.tolist()],
            )
        )


def note_other_ids(sources: Sequence[BoxSource]) -> None:
    """Note ids of held-out sources that cannot all be kept in predictions.json."""
    first, seen = sources[0], set(sources[0].image_ids)
    for source in sources[1:]:
        again = [i for i, number in enumerate(source.image_ids) if number in seen]
        seen.update(source.image_ids)
        source.report.noticed.extend(
            findings(
                "image ids of other held-out sources, numbered anew in predictions.json",
                [repr(source.sample_id(i)) for i in again],
            )
        )
        pairs = zip(first.category_ids, source.category_ids, source.class_names, strict=True)
        source.report.noticed.extend(
            findings(
                f"classes with another id than in {first.path}, whose ids predictions.json has",
                [name for a, b, name in pairs if a != b and b >= 0],
            )
        )


def _note(source: BoxSource, what: str, mask: np.ndarray) -> None:
    """Of boxes, bool [m]; an image is named once."""
    rows = np.flatnonzero(mask)
    images = source.image[rows[: 4 * EXAMPLES]].tolist()
    places = dict.fromkeys(repr(source.sample_id(i)) for i in images)
    source.report.noticed.extend(findings(what, list(places), len(rows)))
