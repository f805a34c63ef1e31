"""From settings, annotated sources and a network to a run of the one loop."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from downstream.backbone.backbone import Backbone
from downstream.backbone.config import PARTS
from downstream.dense.config import AnnotatedConfig, DownstreamConfig
from downstream.dense.model import DenseModel
from downstream.dense.preflight import Annotated, Report, in_both, write_preflight
from ssld.common.errors import InputError, one_line
from ssld.data.sampling import Sampler
from ssld.engine.optimizer import build_optimizer
from ssld.engine.processes import check_launcher, open_accelerator
from ssld.engine.start import Run, require_divisible, start

Opened = TypeVar("Opened", bound=Annotated)


def open_sources(
    data: AnnotatedConfig, open_source: Callable[[str, list[str] | None], Opened]
) -> tuple[list[Opened], list[Opened]]:
    """Training and held-out sources, all with the same classes in the same order.

    Args:
        open_source: (path, names of the classes in order, or None for the source's own) -> source.

    Raises:
        InputError: a source that cannot be opened, or has other classes.
    """
    names = data.classes

    def opened(setting: str, paths: str | list[str]) -> list[Opened]:
        nonlocal names
        sources = []
        for path in paths:
            try:
                sources.append(open_source(path, names))
            except InputError as error:
                raise InputError(f"{setting}: {error}") from error
            names = names or sources[-1].class_names
        return sources

    return opened("data.train", data.train), opened("data.val", data.val)


def open_processes(config: DownstreamConfig) -> Accelerator:
    """The processes of a run, in agreement with its settings.

    Raises:
        InputError: the launcher disagrees, or the batch cannot be shared equally.
    """
    check_launcher(config)
    accelerator = open_accelerator(config)
    require_divisible(config, accelerator)
    return accelerator


def start_run(
    config: DownstreamConfig,
    accelerator: Accelerator,
    train: Sequence[Annotated],
    val: Sequence[Annotated],
    network: DenseModel,
    *,
    size: tuple[int, int],
    head: str,
    reports: Mapping[str, Sequence[Report]],
    annotations_sha256: Sequence[str],
) -> Run:
    """Create the run folder and write the preflight report into it, or go on in it.

    Args:
        size: height and width in px of a usual training image, for the network's cost.
        head: name of the network on the backbone.
        reports: of the sources, by `train` and `val`; the main process's are written.
        annotations_sha256: of what is annotated.

    Raises:
        InputError: see `ssld.engine.start.start`; an optimizer that timm does not know.
    """
    build_optimizer(network, config.optimizer)  # refuse it before anything is written
    backbone = network.backbone
    fact = {**cost(network, size), "mean": network.mean, "std": network.std}
    architecture = f"{head} on {backbone.architecture}"
    facts: dict[str, Any] = {
        "network": {"architecture": architecture, **fact},
        "classes": network.label_names,
        "backbone": {
            "pretrained": backbone.pretrained,
            "distilled": backbone.distilled,
            "lr_factors": lr_factors(network),
        },
        "annotations_sha256": hashlib.sha256("".join(annotations_sha256).encode()).hexdigest(),
        # A backward pass costs twice its forward pass (Kaplan et al. 2020, 2.1).
        "flops_per_image": 6e6 * fact["macs_m"],
    }
    order = Sampler([len(source) for source in train], None, config.seed)
    run = start(config, accelerator, train, val, order, facts)
    accelerator.print(
        f"network: {architecture}, {fact['parameters_m']:.2f} M parameters, "
        f"{fact['macs_m']:,.0f} M multiply-adds at {size[1]} x {size[0]} px; {_start(backbone)}, "
        f"learning rates of stem to stage 4 over the head's: {lr_factors(network)}"
    )
    if accelerator.is_main_process:
        for line in write_preflight(run.folder.path, reports, in_both(train, val)):
            print(line)
    return run


def lr_factors(network: DenseModel) -> list[float]:
    """The backbone's learning rate over the head's, of stem and stages 1 to 4."""
    scales = network.lr_scales()
    factors = [1.0] * PARTS
    for name, _ in network.backbone.named_parameters():
        factors[network.backbone.part(name)] = scales[f"model.backbone.{name}"]
    return factors


def _start(backbone: Backbone) -> str:
    if not backbone.pretrained:
        return "backbone from random weights"
    return f"{'distilled' if backbone.distilled else 'pretrained'} backbone"


def cost(network: DenseModel, size: tuple[int, int]) -> dict[str, Any]:
    """Parameters and multiply-adds of a forward pass in millions, on one black image.

    Raises:
        InputError: the network does not run on images of this size.
    """
    images = torch.zeros(1, *size, 3, dtype=torch.uint8)
    training = network.training
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.eval().requires_grad_(False)  # the counter fails on a parameter that is an argument
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(images, torch.tensor([size]))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = one_line(error, 200)
        raise InputError(
            f"the network does not run on images of {size[1]} x {size[0]} px ({reason}); set "
            "another size in `augment`"
        ) from error
    finally:
        network.train(training)
        for parameter in learned:
            parameter.requires_grad_(True)
    return {
        "parameters_m": round(sum(p.numel() for p in network.parameters()) / 1e6, 3),
        "macs_m": round(counter.get_total_flops() / 2e6, 2),
        "input_size": list(size),
    }
