"""From settings, annotated sources and a network to a run of the one loop."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from downstream.backbone.backbone import Backbone, describe, rebuild
from downstream.backbone.config import PARTS
from downstream.dense.classification import Classes
from downstream.dense.config import DownstreamConfig
from downstream.dense.memory import warn_of_memory
from downstream.dense.model import DenseModel, load_weights, read_description
from downstream.dense.preflight import Readable, Report, in_both, write_preflight
from downstream.dense.sources import (
    HELD_OUT,
    LABELED,
    Opened,
    Sources,
    list_of,
    refuse_held_out,
    require_same_images,
    sample_order,
)
from downstream.dense.texts import shown
from ssld.common.errors import InputError, one_line
from ssld.common.files import write_atomically
from ssld.data.sampling import Order
from ssld.engine.optimizer import build_optimizer
from ssld.engine.processes import check_launcher, open_accelerator
from ssld.engine.start import Run, require_divisible, start
from ssld.models.image_size import size_advice
from zoo.release import sha256_of

Builder = Callable[[Backbone, int], nn.Module]


def load_init(
    network: DenseModel, path: str, task: str, head: Mapping[str, Any], build: Builder
) -> tuple[str, str]:
    """Start from the whole network of a run; where its classes are others, from all but what
    depends on classes. Returns the sha256 of its weights, and what was left out as words.

    Args:
        path: see `DownstreamConfig.init`.
        task: detection or segmentation.
        head: settings of the network on the backbone.
        build: see `start_run`.

    Raises:
        InputError: it is of another task, head or backbone, or has other keypoints; it is damaged.
    """
    try:
        folder, content = read_description(path)
        own = {"task": task, "head": dict(head)}
        known = describe(network.backbone)
        own |= {f"backbone.{key}": known[key] for key in ("architecture", "mean", "std")}
        its = {**content, **{f"backbone.{k}": x for k, x in content["backbone"].items()}}
        points, saved = getattr(network, "keypoints", None), content.get("keypoints")
        own["keypoints"] = list(points.names) if points else None
        its["keypoints"] = saved.get("names") if isinstance(saved, dict) else saved
        for key, value in own.items():
            if its[key] != value:
                raise InputError(
                    f"{folder} has {key} {shown(its[key])}, this run {shown(value)}: give a run of "
                    "the same network and keypoints, or leave init out"
                )
        left_out: list[str] = []
        if content["class_names"] != network.label_names:
            left_out = of_classes(network, build)
        load_weights(network.model, folder, left_out)
    except InputError as error:
        raise InputError(f"init: {error}") from error
    note = ""
    if left_out:
        note = (
            f", whose classes are not these ({shown(content['class_names'])}): "
            f"{len(left_out)} tensors begin anew ({', '.join(left_out)})"
        )
    return sha256_of(folder / "model.safetensors"), note


def of_classes(network: DenseModel, build: Builder) -> list[str]:
    """Names of the tensors whose shapes depend on the number of classes."""
    count = len(network.label_names or ())
    with torch.random.fork_rng(devices=[]):
        other = build(rebuild(describe(network.backbone)), count + 1)
    shapes = {name: tensor.shape for name, tensor in other.state_dict().items()}
    own = network.model.state_dict()
    return [name for name, tensor in own.items() if tensor.shape != shapes[name]]


def open_processes(config: DownstreamConfig) -> Accelerator:
    """The processes of a run, in agreement with its settings.

    Raises:
        InputError: the launcher disagrees, or the batch cannot be shared equally.
    """
    check_launcher(config)
    accelerator = open_accelerator(config)
    require_divisible(config, accelerator)
    labeled, passes = config.labeled_batch_size, config.accumulate * accelerator.num_processes
    if labeled % passes:
        raise InputError(
            f"classification.batch_size is {labeled}: give a multiple of the "
            f"{accelerator.num_processes} processes times accumulate ({config.accumulate})"
        )
    return accelerator


def start_run(
    config: DownstreamConfig,
    accelerator: Accelerator,
    sources: Sources[Opened],
    network: DenseModel,
    classes: Classes | None,
    *,
    task: str,
    head: Mapping[str, Any],
    build: Builder,
    size: tuple[int, int],
    reports: Mapping[str, Sequence[Report]],
    annotations_sha256: Sequence[str],
    unlabeled: Sequence[Readable] = (),
    order: Order | None = None,
    work: float = 1.0,
) -> Run:
    """Create the run folder and write the preflight report into it, or go on in it.

    Args:
        classes: labeled images besides, where there are any.
        task: detection or segmentation.
        head: settings of the network on the backbone.
        build: (backbone, number of classes) -> a network as this one, with random weights.
        size: height and width in px of a usual training image, for the network's cost.
        reports: of the sources, by `train`, `generated`, `unlabeled` and `val`; the main process's
            are written.
        annotations_sha256: of what is annotated.
        unlabeled: further images to train on, numbered after the sources.
        order: which image is seen when; by default as `data` says.
        work: of a step for each image of `batch_size`, over a forward and a backward pass.

    Raises:
        InputError: see `ssld.engine.start.start`; an optimizer that timm does not know; a network
            in `init` that does not fit; held-out images with generated annotations or classes;
            processes that see different images.
    """
    build_optimizer(network, config.optimizer)  # refuse it before anything is written
    labeled = classes.sources if classes else []
    require_same_images(accelerator, [*sources.seen, *unlabeled, *labeled])
    refuse_held_out(accelerator, sources.val, sources.generated, "data.generated")
    refuse_held_out(accelerator, sources.val, labeled, "classification.train")
    start_sha256, begun = None, _start(network.backbone)
    if config.init:
        start_sha256, left_out = load_init(network, config.init, task, head, build)
        begun = f"from {config.init}{left_out}"
    backbone = network.backbone
    warn_of_memory(config, accelerator, network, size)
    fact = {**cost(network, size), "mean": network.mean, "std": network.std}
    architecture = f"{head['name']} on {backbone.architecture}"
    facts: dict[str, Any] = {
        "network": {"architecture": architecture, **fact},
        "classes": network.label_names,
        "backbone": {
            "pretrained": backbone.pretrained,
            "distilled": backbone.distilled,
            "lr_factors": lr_factors(network),
        },
        "start_sha256": start_sha256,
        "held_out": _held_out(config, accelerator, sources),
        "annotations_sha256": hashlib.sha256("".join(annotations_sha256).encode()).hexdigest(),
        # A backward pass costs twice its forward pass (Kaplan et al. 2020, 2.1).
        "flops_per_image": 6e6 * fact["macs_m"] * work,
    }
    if classes:
        side, share = classes.view.size, classes.batch_size / config.batch_size
        macs = _macs(network, network.pooled, (side, side), "classification")
        facts["flops_per_image"] += 6e6 * macs * share
    order = order or sample_order(config, sources)
    seen = [*sources.seen, *unlabeled, *labeled]
    run = start(config, accelerator, seen, sources.val, order, facts)
    accelerator.print(
        f"network: {architecture}, {fact['parameters_m']:.2f} M parameters, "
        f"{fact['macs_m']:,.0f} M multiply-adds at {size[1]} x {size[0]} px; "
        f"{begun}, learning rates of stem to stage 4 over the head's: {lr_factors(network)}"
    )
    if accelerator.is_main_process:
        _write_of_data(run.folder.path, config, sources, reports)
    return run


def _held_out(
    config: DownstreamConfig, accelerator: Accelerator, sources: Sources[Opened]
) -> dict[str, int] | None:
    """How many images of each source were held out, which is said; None where others are given."""
    if config.data.val:
        return None
    held_out = {x.path: len(x) for x in sources.val}
    accelerator.print(
        f"held out: {sum(held_out.values()):,} images of data.train for evaluation "
        "(data.holdout), as data.val is empty"
    )
    return held_out


def _write_of_data(
    folder: Path,
    config: DownstreamConfig,
    sources: Sources[Opened],
    reports: Mapping[str, Sequence[Report]],
) -> None:
    """The preflight report, and lists of images that were drawn."""
    several = len(config.data.train) > 1
    for line in write_preflight(folder, reports, in_both(sources.train, sources.val)):
        print(line)
    if config.data.labeled_share < 1 or not config.data.val:
        write_atomically(folder / LABELED, list_of(sources.train, several=several))
    if not config.data.val:
        write_atomically(folder / HELD_OUT, list_of(sources.val, several=several))


def lr_factors(network: DenseModel) -> list[float]:
    """The backbone's learning rate over the head's, of stem and stages 1 to 4; 0 of frozen ones."""
    scales = network.lr_scales()
    factors = [1.0] * PARTS
    learned: set[int] = set()
    for name, parameter in network.backbone.named_parameters():
        part = network.backbone.part(name)
        learned |= {part} if parameter.requires_grad else set()
        factors[part] = scales[f"model.backbone.{name}"] if part in learned else 0.0
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
    macs = _macs(network, lambda images: network(images, torch.tensor([size])), size, "augment")
    return {
        "parameters_m": round(sum(p.numel() for p in network.parameters()) / 1e6, 3),
        "macs_m": round(macs, 2),
        "input_size": list(size),
    }


def _macs(
    network: DenseModel, call: Callable[[Tensor], Any], size: tuple[int, int], setting: str
) -> float:
    """Multiply-adds of a call in millions, on one black image.

    Raises:
        InputError: the network does not run on images of this size.
    """
    training = network.training
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    network.eval().requires_grad_(False)  # the counter fails on a parameter that is an argument
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            call(torch.zeros(1, *size, 3, dtype=torch.uint8))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = one_line(error, 200)
        backbone = network.backbone
        advice = size_advice(backbone.architecture, backbone.args, size)
        raise InputError(
            f"the network does not run on images of {size[1]} x {size[0]} px ({reason}); set "
            f"another size in `{setting}`{advice.replace('`args', '`backbone.args')}"
        ) from error
    finally:
        network.train(training)
        for parameter in learned:
            parameter.requires_grad_(True)
    return counter.get_total_flops() / 2e6
