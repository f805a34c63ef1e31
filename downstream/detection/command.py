"""Train a detector: `accelerate launch -m downstream.detection --config F.yaml --backbone NAME`."""

from __future__ import annotations

from dataclasses import replace

import torch

from downstream.dense.start import open_processes, open_sources, start_run
from downstream.detection.config import DetectionConfig
from downstream.detection.data.boxes import open_boxes
from downstream.detection.data.limits import note_many, note_other_ids, note_small
from downstream.detection.heads.decoding import MAX_DETECTIONS
from downstream.detection.model import DetectionModel, build
from downstream.detection.task import DetectionTask
from ssld.engine.loop import train


def detection(config: DetectionConfig) -> None:
    """Train on boxes, then export and report into `config.out`.

    Raises:
        InputError: bad settings, sources, backbone or launcher; nothing was written then.
    """
    accelerator = open_processes(config)
    sources, val = open_sources(config.data, open_boxes)
    note_small(sources, config.augment)
    note_other_ids(val)
    names = sources[0].class_names
    torch.manual_seed(config.seed)
    built = build(config.detector.name, config.backbone, len(names), config.detector.args)
    model = DetectionModel(built, names)
    if model.queries is not None:
        note_many(sources, model.queries, "detector.args.num_queries has places for")
    note_many(val, min(MAX_DETECTIONS, model.queries or MAX_DETECTIONS), "are found in one")
    config = replace(config, data=replace(config.data, classes=names))
    side = max(config.augment.sizes)
    size = (side, side) if config.augment.resize == "square" else (side, round(side * 4 / 3))
    run = start_run(
        config, accelerator, sources, val, model, size=size, head=config.detector.name,
        reports={"train": [x.report for x in sources], "val": [x.report for x in val]},
        annotations_sha256=[source.report.boxes_sha256 for source in (*sources, *val)],
    )  # fmt: skip
    task = DetectionTask(sources, val, config.augment, config.detector, config.seed)
    train(run, task, model)
