"""Top-1, top-5 and their 95 % intervals: `ssld evaluate --model M --data SOURCE`."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from ssld.common.errors import InputError
from ssld.common.files import write_atomically
from ssld.common.metrics import METRICS, beyond_chance, wilson
from ssld.data.labels import index_for
from ssld.data.loading import Batch, ViewBatches, eval_batches
from ssld.data.sources import open_source
from ssld.data.transforms import eval_view
from ssld.data.unreadable import Unreadables
from ssld.health.classification_metrics import ClassificationMetrics
from ssld.health.config import EvaluateConfig
from ssld.models.classifier import Classifier
from ssld.models.opening import open_network
from ssld.models.teacher import Teacher, autocast

SURELY_TRAINED = 0.5
"""Top-1 beyond chance from which the model is not accused, however few the images are."""


def accuracy(
    network: Classifier | Teacher, batches: Iterable[Batch], precision: str = "fp32"
) -> ClassificationMetrics:
    """What a network in eval mode gets right."""
    measured = ClassificationMetrics(network.num_classes, next(network.parameters()).device)
    with torch.inference_mode():
        for batch in batches:
            with autocast(batch.images.device, precision):
                logits = network(batch.images)
            measured.add(batch, logits.float())
    return measured


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Print the accuracy of one model over labeled sources, write it to `config.out` and return it.

    Raises:
        InputError: a source without labels, labels that the model does not know, a bad model.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.precision == "fp16" and device.type == "cpu":
        raise InputError("precision fp16 needs a GPU; use bf16 or fp32")
    network = _open_model(config).to(device).eval()
    sources = [open_source(path) for path in config.data]
    unreadables = Unreadables(sources, config.max_unreadable)
    batches = eval_batches(
        ViewBatches(sources, eval_view(network), index_for(sources, network, "model")),
        batch_size=config.batch_size,
        workers=config.workers,
        device=device,
        unreadables=unreadables,
        description="evaluate",
    )
    measured = accuracy(network, batches, config.precision)
    result = _result(network, measured, unreadables.count, len(sources))
    _print_result(config.model, result)
    doubt = doubt_of(result, network)
    if doubt:
        print(f"warning: {doubt}", file=sys.stderr)
    if config.out:
        written = {"model": config.model, **result}
        write_atomically(Path(config.out), json.dumps(written, indent=2) + "\n")
    return result


def _open_model(config: EvaluateConfig) -> Classifier:
    folder = Path(config.model).is_dir()
    network = open_network(
        "model",
        arch=None if folder else config.model,
        args=config.args,
        pretrained=config.checkpoint is None,
        checkpoint=config.model if folder else config.checkpoint,
        input_size=config.input_size,
        mean=config.mean,
        std=config.std,
    )
    network.require_classes("model")
    return network


def _result(
    network: Classifier, measured: ClassificationMetrics, unreadable: int, sources: int
) -> dict[str, Any]:
    images = measured.counted("top1")[1]
    if images == 0:
        raise InputError(
            f"data: no labeled image in the {sources} given source(s); give a folder with one "
            "subfolder per class, or a manifest or shards with labels"
        )
    if math.isnan(measured.metrics()["entropy_student"]):
        raise InputError(
            "the model's predictions are not finite (NaN or infinite) for some of these images: "
            "check the weights, or take precision fp32 or bf16 where it is fp16"
        )
    result: dict[str, Any] = {"images": images, "unreadable": unreadable}
    for name in ("top1", "top5"):
        hits, _ = measured.counted(name)
        low, high = wilson(hits, images)
        result |= {name: hits / images, f"{name}_low": low, f"{name}_high": high}
    # What guessing reaches: of all classes alike, or each as often as this model says it.
    result["chance"] = max(1 / network.num_classes, measured.metrics().get("top1_chance", 0.0))
    result["parameters"] = sum(p.numel() for p in network.model.parameters())
    return result


def _print_result(model: str, result: dict[str, Any]) -> None:
    print(f"{model} on {result['images']} images, {result['unreadable']} unreadable")
    for name in ("top1", "top5"):
        low, high = result[f"{name}_low"], result[f"{name}_high"]
        interval = f"[95 % interval {low:.2%} to {high:.2%}]"
        print(f"  {METRICS[name].label}  {result[name]:.2%}  {interval}")


def doubt_of(result: dict[str, Any], network: Classifier) -> str | None:
    """What is to be said where the interval of top-1 reaches down to chance; None elsewhere."""
    top1, chance = result["top1"], result["chance"]
    if network.num_classes < 2 or result["top1_low"] > chance:
        return None
    if beyond_chance(top1, chance) >= SURELY_TRAINED:
        count = result["images"]
        return f"{count} images are too few to tell this top-1 from chance ({chance:.2%})"
    order = (
        "the images' classes are named like the model's and mean others"
        if network.label_names
        else "the labels count the classes in another order than the model, which does not say its "
        "names, or are of other classes"
    )
    return (
        f"top-1 is no better than chance ({chance:.2%}); likely: {order}; another normalisation "
        f"than the model was trained with (mean {_shown(network.mean)}, std "
        f"{_shown(network.std)}, {network.input_size} px); weights that were not trained"
    )


def _shown(values: Sequence[float]) -> str:
    return str([round(x, 4) for x in values])
