"""Top-1, top-5 and their 95 % intervals: `ssld evaluate --model M --data SOURCE`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssld import cli
from ssld.config import EvaluateConfig
from ssld.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from ssld.data.loading import Batch
    from ssld.network import Network

Sums = dict[str, "Tensor"]


def wilson(hits: float, count: float, z: float = 1.959964) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927); (0, 1) when nothing was counted."""
    if count == 0:
        return 0.0, 1.0
    share, z2 = hits / count, z * z / count
    centre = (share + z2 / 2) / (1 + z2)
    half = z * math.sqrt(share * (1 - share) / count + z2 / (4 * count)) / (1 + z2)
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def accuracy_sums(logits: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Top-1 and top-5 hits of logits [b, classes] and which images count: labeled, readable."""
    counted = batch.weight * (batch.labels >= 0)
    ranked = logits.topk(min(5, logits.shape[-1])).indices  # [b, 5]
    hits = (ranked == batch.labels[:, None]).float()
    return {"top1": (hits[:, 0], counted), "top5": (hits.sum(1), counted)}


def agreement_sums(
    logits: Tensor, targets: Tensor, batch: Batch
) -> dict[str, tuple[Tensor, Tensor]]:
    """agreement@1: both networks' best class is the same. agreement@5: the teacher's best class is
    among the student's five best. logits and targets are [b, classes]."""
    ranked = logits.topk(min(5, logits.shape[-1])).indices
    hits = (ranked == targets.argmax(-1, keepdim=True)).float()
    return {"agreement1": (hits[:, 0], batch.weight), "agreement5": (hits.sum(1), batch.weight)}


def add_sums(sums: Sums, values: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Add per-image (value [b], weight [b]) to `{metric: float64 [sum, count]}`."""
    import torch

    for name, (value, weight) in values.items():
        total = torch.stack([(value.double() * weight).sum(), weight.double().sum()])
        sums[name] = sums[name] + total if name in sums else total


def accuracy(network: Network, batches: Iterable[Batch], precision: str = "fp32") -> Sums:
    """`{"top1": [hits, count], "top5": ...}` of a network in eval mode."""
    import torch

    from ssld.teacher import autocast

    sums: Sums = {}
    with torch.inference_mode():
        for batch in batches:
            with autocast(batch.images.device, precision):
                logits = network(batch.images)
            add_sums(sums, accuracy_sums(logits.float(), batch))
    return sums


def evaluate(config: EvaluateConfig) -> None:
    """Print the accuracy of one model over labeled sources; also write it to `config.out`.

    Raises:
        InputError: a source without labels, labels that the model does not know, a bad model.
    """
    import torch

    from ssld.data.sources import open_source
    from ssld.data.views import EvalView
    from ssld.run.batches import Unreadables, eval_batches, label_index

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.precision == "fp16" and device.type == "cpu":
        raise InputError("precision fp16 needs a GPU; use bf16 or fp32")
    network = _open_model(config).to(device).eval()
    sources = [open_source(path) for path in config.data]
    index = label_index(sources, network.label_names, network.num_classes, "model")
    unreadables = Unreadables(sources, config.max_unreadable, None)
    view = EvalView(network.input_size, network.crop_pct, network.interpolation)
    batches = eval_batches(
        sources,
        view,
        batch_size=config.batch_size,
        workers=config.workers,
        label_index=index,
        device=device,
        unreadables=unreadables,
        description="evaluate",
    )
    sums = accuracy(network, batches, config.precision)
    result = _result(network, sums, unreadables.count, len(sources))
    _print_result(config.model, result)
    if config.out:
        temporary = Path(f"{config.out}.tmp")
        temporary.write_text(json.dumps({"model": config.model, **result}, indent=2) + "\n")
        os.replace(temporary, config.out)


def _open_model(config: EvaluateConfig) -> Network:
    from ssld.network import open_network

    folder = Path(config.model).is_dir()
    return open_network(
        "model",
        arch=None if folder else config.model,
        args=config.args,
        pretrained=config.checkpoint is None,
        checkpoint=config.model if folder else config.checkpoint,
        input_size=config.input_size,
        mean=config.mean,
        std=config.std,
    )


def _result(network: Network, sums: Sums, unreadable: int, sources: int) -> dict[str, Any]:
    images = int(sums["top1"][1]) if "top1" in sums else 0
    if images == 0:
        raise InputError(
            f"data: no labeled image in the {sources} given source(s); give a folder with one "
            "subfolder per class, or a manifest or shards with labels"
        )
    result: dict[str, Any] = {"images": images, "unreadable": unreadable}
    for name in ("top1", "top5"):
        hits = float(sums[name][0])
        low, high = wilson(hits, images)
        result |= {name: hits / images, f"{name}_low": low, f"{name}_high": high}
    result["parameters"] = sum(p.numel() for p in network.model.parameters())
    return result


def _print_result(model: str, result: dict[str, Any]) -> None:
    print(f"{model} on {result['images']} images, {result['unreadable']} unreadable")
    for name, label in (("top1", "top-1"), ("top5", "top-5")):
        low, high = result[f"{name}_low"], result[f"{name}_high"]
        print(f"  {label}  {result[name]:.2%}  [95 % interval {low:.2%} to {high:.2%}]")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.command("ssld evaluate", EvaluateConfig, evaluate, argv)


if __name__ == "__main__":
    raise SystemExit(main())
