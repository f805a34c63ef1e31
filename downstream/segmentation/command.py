"""Train a segmenter on a backbone:

accelerate launch -m downstream.segmentation --config F.yaml --backbone NAME
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from downstream.segmentation.config import SegmentationConfig
from ssld.common.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from downstream.segmentation.data.masks import MaskSource


def segmentation(config: SegmentationConfig) -> None:
    """Train on masks, then export and report into `config.out`.

    Raises:
        InputError: bad settings, sources, backbone or launcher; nothing was written then.
    """
    import torch

    from downstream.dense.start import open_processes, open_sources, start_run
    from downstream.segmentation.data.masks import open_masks
    from downstream.segmentation.model import SegmentationModel
    from downstream.segmentation.networks import build
    from downstream.segmentation.task import SegmentationTask
    from ssld.engine.loop import train

    accelerator = open_processes(config)
    images = config.batch_size // (config.accumulate * accelerator.num_processes)
    if config.segmenter.name == "deeplabv3plus" and images < 2:
        raise InputError(
            f"batch_size is {config.batch_size}, {images} image for each forward pass: the batch "
            "norm of deeplabv3plus's image pooling needs two, give a larger one"
        )
    sources, val = open_sources(config.data, open_masks)
    names = sources[0].class_names
    torch.manual_seed(config.seed)
    built = build(config.segmenter.name, config.backbone, len(names))
    model = SegmentationModel(built, names)
    config = replace(config, data=replace(config.data, classes=names))
    run = start_run(
        config, accelerator, sources, val, model, size=config.augment.crop,
        head=config.segmenter.name, annotations_sha256=_looked_at(sources, val, accelerator),
    )  # fmt: skip
    task = SegmentationTask(sources, val, config, model.mean, model.aux_weight)
    train(run, task, model)


def _looked_at(
    sources: Sequence[MaskSource], val: Sequence[MaskSource], accelerator: Accelerator
) -> list[str]:
    """Look at all masks, on the main process only as it reads them all; returns their digests.

    Raises:
        InputError: masks that would ruin a result, on all processes.
    """
    from accelerate.utils import broadcast_object_list

    found: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            training = [source.report for source in sources]
            for source in (*sources, *val):
                source.report.check(training)
            found[0] = [json.dumps(source.report.hashes) for source in (*sources, *val)]
        except InputError as error:
            found[1] = str(error)
    digests, problem = broadcast_object_list(found)
    if problem:
        raise InputError(problem)
    return digests
