"""What transfer trains, and what it keeps of an evaluation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from downstream.ab.records import PROBE
from downstream.backbone.backbone import open_backbone
from downstream.backbone.config import PARTS, PRESETS, BackboneConfig
from downstream.backbone.weights import architecture, is_distilled, open_classifier
from downstream.transfer.config import TransferConfig
from ssld.common.errors import InputError
from ssld.common.files import write_atomically
from ssld.data.labels import class_names, kept_order
from ssld.data.loading import Batch
from ssld.distill.probe import probe
from ssld.distill.setup import ClassifierRun, Setup
from ssld.distill.supervised import Supervision
from ssld.engine.optimizer import build_optimizer
from ssld.engine.per_image import write_held_out
from ssld.health.classification_metrics import Tally
from ssld.models.classifier import Classifier


class Hits(Tally):
    """As `Tally`, and which images are right.

    Args:
        num_classes: of the network.
        device: where predictions will be.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        super().__init__(num_classes, device)
        self.hits: list[tuple[str, bool]] = []
        """(sample id, whether the best class is the label) of each labeled image."""

    def add(
        self,
        batch: Batch,
        logits: Tensor,
        targets: Tensor | None = None,
        distance: Tensor | None = None,
    ) -> None:
        super().add(batch, logits, targets, distance)
        # As top-1 is counted: of equal logits the one that topk puts first.
        best = logits.float().log_softmax(-1).topk(min(5, logits.shape[-1])).indices[:, 0]
        right = (best == batch.labels).tolist()
        counts = ((batch.weight > 0) & (batch.labels >= 0)).tolist()
        rows = zip(batch.ids, right, counts, strict=True)
        self.hits += [(name, hit) for name, hit, known in rows if known]

    def reduce(self, accelerator: Accelerator, cut_short: bool) -> bool:
        if accelerator.num_processes > 1:
            self.hits = gather_object(self.hits)
        return super().reduce(accelerator, cut_short)


class Transfer(Supervision):
    """As supervised training, and a record by image is kept."""

    def evaluate(self, student: Classifier, batches: Iterable[Batch]) -> Hits:
        found = Hits(student.num_classes, next(student.parameters()).device)
        for batch in batches:
            found.add(batch, student(batch.images).float())
        return found

    def keep(self, run: ClassifierRun, score: Tally, step: int, best: bool) -> None:
        """Write held_out.npz of the network that is exported: `ids`, text [n], and `hits`,
        bool [n], in the order of the ids."""
        if not best or not isinstance(score, Hits):
            return
        pairs = sorted(score.hits)
        hits = np.array([hit for _, hit in pairs], bool)
        write_held_out(run.folder.path, [name for name, _ in pairs], hits=hits)


class TransferNetwork(Classifier):
    """A classifier whose parts learn at rates of their own.

    Args:
        network: with its new classifier.
        scales: {parameter name: factor} as `downstream.backbone.backbone.Backbone.lr_scales` gives them;
            the classifier has the full rate.
        rest: factor of what lies between the last feature map and the classifier.
    """

    def __init__(self, network: Classifier, scales: Mapping[str, float], rest: float) -> None:
        super().__init__(network.model, input_size=network.input_size)
        own = {id(p) for p in _classifier(self.model)}
        self._scales = {
            name: scales.get(name, rest)
            for name, parameter in self.named_parameters()
            if id(parameter) not in own
        }

    def lr_scales(self) -> dict[str, float]:
        return dict(self._scales)


def open_network(setup: Setup, config: TransferConfig) -> TransferNetwork:
    """The backbone of `config` with a fresh classifier for the classes of `setup.labeled`.

    Raises:
        InputError: no classes are named, weights that do not fit, settings of an optimizer.
    """
    names = kept_order(class_names(setup.labeled), config.out, config.resume)
    if names is None:
        raise InputError(
            "data.labeled names no classes: give one subfolder per class, or a manifest with the "
            "names of classes as labels"
        )
    backbone = dataclasses.replace(config.backbone, freeze_batch_norm=False)
    torch.manual_seed(config.seed)
    network = open_classifier(backbone)
    model: Any = network.model
    model.reset_classifier(len(names))
    model.pretrained_cfg.pop("label_names", None)
    network.input_size = config.augment.size or network.input_size
    factors = _factors(backbone)
    scales = _scales(model, factors) if factors else {}
    found = TransferNetwork(network, scales, factors[-1] if factors else 1.0)
    found.label_names = names
    build_optimizer(found, config.optimizer)  # refuse it before anything is written
    augment = dataclasses.replace(config.augment, size=found.input_size)
    resolved: Any = dataclasses.replace(config, augment=augment)
    setup.config = resolved
    known = {"pretrained": backbone.pretrained, "distilled": is_distilled(backbone)}
    setup.facts["backbone"] = {**known, "lr_factors": factors or [1.0] * PARTS}
    setup.accelerator.print(
        "backbone: learning rates of stem to stage 4 over the classifier's: "
        f"{factors or [1.0] * PARTS}"
    )
    return found


def _scales(model: Any, factors: list[float]) -> dict[str, float]:
    """{parameter name: factor} of what is in front of the last feature map, as the architecture has
    it; no weights are read for that."""
    name, args = architecture(model)
    fresh = BackboneConfig(name=name, args=args, pretrained=False, lr=factors)
    return open_backbone(fresh, strides=(32,)).lr_scales()


def _factors(config: BackboneConfig) -> list[float]:
    """Of the learning rates of stem and stages 1 to 4; empty where all learn at one rate."""
    if not isinstance(config.lr, str):
        return list(config.lr)
    tuned = config.lr == "tuned" or (config.lr == "auto" and is_distilled(config))
    return list(PRESETS["transfer"]) if tuned else []


def _classifier(model: Any) -> list[Tensor]:
    found = model.get_classifier()
    heads = found if isinstance(found, list | tuple) else [found]
    return [parameter for head in heads for parameter in head.parameters()]


def probe_before(run: ClassifierRun, network: Classifier) -> None:
    """Write probe.json, {before: {knn, linear}}, of the features as they came; once for a run."""
    path: Path = run.folder.path / PROBE
    if run.config.probe.every_epochs == 0 or run.previous is not None:  # done before
        return
    found = probe(run, network.to(run.accelerator.device).eval())
    if run.accelerator.is_main_process:
        write_atomically(path, json.dumps({"before": found}) + "\n")
        said = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        run.accelerator.print(f"frozen features before the first step: {said or 'no labels'}")
