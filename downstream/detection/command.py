"""Train a detector: `accelerate launch -m downstream.detection --config F.yaml --backbone NAME`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from downstream.config import with_backbone_name
from downstream.detection.config import DetectionConfig
from downstream.packages import BY_HEAD, require_packages
from ssld import cli


def detection(config: DetectionConfig) -> None:
    """Train on boxes, then export and report into `config.out`.

    Raises:
        InputError: bad settings, sources, backbone or launcher; nothing was written then.
    """
    from ssld.run.folder import check_out

    require_packages("detection", "faster_coco_eval", *BY_HEAD.get(config.detector.name, ()))
    check_out(config)  # before torch is imported
    import torch

    from downstream.data.box_limits import note_many, note_other_ids, note_small
    from downstream.data.boxes import open_boxes
    from downstream.detection.decoding import MAX_DETECTIONS
    from downstream.detection.model import DetectionModel
    from downstream.detection.networks import build
    from downstream.detection.task import DetectionTask
    from downstream.start import open_processes, open_sources, start_run
    from ssld.run.loop import train

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
        annotations_sha256=[source.report.boxes_sha256 for source in (*sources, *val)],
    )  # fmt: skip
    task = DetectionTask(sources, val, config.augment, config.detector, config.seed)
    train(run, task, model)


def main(argv: Sequence[str] | None = None) -> int:
    words = with_backbone_name(sys.argv[1:] if argv is None else argv)
    launched = argv is None
    return cli.command("ssld detection", DetectionConfig, detection, words, launched=launched)
