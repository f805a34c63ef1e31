"""Train a segmenter on a backbone:

accelerate launch -m downstream.segmentation --config F.yaml --backbone NAME
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial

import torch

from downstream.dense.classification import open_classes
from downstream.dense.sources import Sources, open_sources
from downstream.dense.start import open_processes, start_run
from downstream.dense.training_views import write_training_views
from downstream.segmentation.config import SegmentationConfig
from downstream.segmentation.data.masks import MaskSource, open_masks
from downstream.segmentation.data.preflight import MaskReport, inspect
from downstream.segmentation.model import SegmentationModel, build, on_backbone
from downstream.segmentation.networks import segmenter
from downstream.segmentation.task import SegmentationTask
from ssld.common.errors import InputError
from ssld.engine.loop import train
from ssld.engine.processes import on_main
from ssld.engine.start import Run


def segmentation(config: SegmentationConfig) -> None:
    """Train on masks, then export and report into `config.out`.

    Raises:
        InputError: bad settings, sources, backbone or launcher; nothing was written then.
    """
    run, task, model = opened(config)
    write_training_views(run, task.make_train, task.draw_view, task.legend)
    train(run, task, model)


def opened(config: SegmentationConfig) -> tuple[Run, SegmentationTask, SegmentationModel]:
    """A run that is ready to begin, in its folder.

    Raises:
        InputError: as of `segmentation`.
    """
    accelerator = open_processes(config)
    images = config.batch_size // (config.accumulate * accelerator.num_processes)
    if segmenter(config.segmenter.name).pools_image and images < 2:
        raise InputError(
            f"batch_size is {config.batch_size}, {images} image for each forward pass: the batch "
            f"norm of {config.segmenter.name}'s image pooling needs two, give a larger one"
        )
    sources = open_sources(config.data, open_masks, config.seed)
    names = sources.train[0].class_names
    torch.manual_seed(config.seed)
    built = build(config.segmenter.name, config.backbone, len(names))
    model = SegmentationModel(built, names)
    classes = open_classes(config, model)
    config = replace(config, data=replace(config.data, classes=names))
    reports = on_main(accelerator, _inspected, sources)
    digests = [json.dumps(x.hashes) for part in reports.values() for x in part]
    run = start_run(
        config, accelerator, sources, model, classes,
        task="segmentation", head=asdict(config.segmenter), size=config.augment.crop,
        build=partial(on_backbone, config.segmenter.name),
        reports=reports, annotations_sha256=digests,
    )  # fmt: skip
    task = SegmentationTask(sources, config, model.mean, model.aux_weight)
    return run, task.also(config, classes), model


def _inspected(sources: Sources[MaskSource]) -> dict[str, list[MaskReport]]:
    """Look at all masks, by their role.

    Raises:
        InputError: masks that would ruin a result.
    """
    reports = {role: [inspect(x) for x in part] for role, part in sources.by_role().items()}
    for part in reports.values():
        for report in part:
            report.check(reports["train"])
    return reports
