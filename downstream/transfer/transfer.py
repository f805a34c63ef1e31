"""Transfer: `accelerate launch -m downstream.transfer --config F.yaml --backbone NAME`.

SSLD section 4.6: "We finetune the entire network using the weights of the pre-trained network as
initialization." A fresh classifier on the backbone, cross-entropy, all of it on the one loop. What
frozen features are worth is measured before the first step (probe.json) and while training, by
nearest neighbours and a linear classifier. `held_out.npz` says which held-out images the exported
network gets right; `ssld ab` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
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
from ssld.distill.setup import ClassifierRun, Data, describe, open_data, start_run
from ssld.distill.supervised import Supervision
from ssld.engine.loop import train
from ssld.engine.optimizer import build_optimizer
from ssld.engine.per_image import write_held_out
from ssld.health.classification_metrics import ClassificationMetrics
from ssld.models.classifier import Classifier


def transfer(config: TransferConfig) -> None:
    """Fine-tune a backbone as a classifier, then export and report into `config.out`.

    Raises:
        InputError: bad settings, sources or launcher; nothing was written then, but the manifests
            of a known data set.
        Interrupted: see `ssld.engine.loop.train`.
    """
    run, task, network = opened(config)
    probe_before(run, network)
    train(run, task, network)


def opened(config: TransferConfig) -> tuple[ClassifierRun, Transfer, TransferNetwork]:
    """A run that is ready to begin, in its folder.

    Raises:
        InputError: as of `transfer`.
    """
    data = open_data(config)
    network, facts = open_network(data, config)
    facts |= describe(data.accelerator, {"student": network})
    run = start_run(data, network, facts)
    return run, Transfer.of(config, network.num_classes), network


class PerImage(ClassificationMetrics):
    """As `ClassificationMetrics`, and which images are right."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        super().__init__(num_classes, device)
        self.hits: list[tuple[str, bool]] = []
        """(sample id, whether the best class is the label) of each labeled image."""

    def add_images(self, batch: Batch, logits: Tensor) -> None:
        """As `add`; logits float [b, classes]."""
        self.add(batch, logits)
        # As top-1 is counted: of equal logits the one that topk puts first.
        best = logits.float().log_softmax(-1).topk(min(5, logits.shape[-1])).indices[:, 0]  # [b]
        counts = (batch.weight > 0) & (batch.labels >= 0)
        rows = zip(batch.ids, (best == batch.labels).tolist(), counts.tolist(), strict=True)
        self.hits += [(name, hit) for name, hit, known in rows if known]

    def reduce(self, accelerator: Accelerator, cut_short: bool) -> bool:
        if accelerator.num_processes > 1:
            self.hits = gather_object(self.hits)
        return super().reduce(accelerator, cut_short)


class Transfer(Supervision):
    """As supervised training, and held_out.npz is kept."""

    def evaluate(self, student: Classifier, batches: Iterable[Batch]) -> PerImage:
        score = PerImage(student.num_classes, next(student.parameters()).device)
        for batch in batches:
            score.add_images(batch, student(batch.images).float())
        return score

    def keep(self, run: ClassifierRun, score: ClassificationMetrics, step: int, best: bool) -> None:
        """Write held_out.npz of the network that is exported: `ids`, text [n], and `hits`,
        bool [n], in the order of the ids."""
        if best and isinstance(score, PerImage):
            pairs = sorted(score.hits)
            hits = np.array([hit for _, hit in pairs], bool)
            write_held_out(run.folder.path, [name for name, _ in pairs], hits=hits)


class TransferNetwork(Classifier):
    """A classifier whose parts learn at rates of their own.

    Args:
        network: with its new classifier, which has the full rate.
        factors: of stem and stages 1 to 4; what lies between the last feature map and the
            classifier has the last one.
    """

    def __init__(self, network: Classifier, factors: list[float]) -> None:
        super().__init__(network.model, input_size=network.input_size)
        model: Any = network.model
        head = model.get_classifier()
        heads = head if isinstance(head, list | tuple) else [head]
        fresh = {id(parameter) for x in heads for parameter in x.parameters()}
        # The scales of a backbone of this architecture; no weights are read for that.
        name, args = architecture(model)
        config = BackboneConfig(name=name, args=args, pretrained=False, lr=factors)
        equal = set(factors) == {1.0}  # needs no stages, which timm does not know of all networks
        scales = {} if equal else open_backbone(config, strides=(32,)).lr_scales()
        self._scales = {
            name: scales.get(name, factors[-1])
            for name, parameter in self.named_parameters()
            if id(parameter) not in fresh
        }

    def lr_scales(self) -> dict[str, float]:
        return dict(self._scales)


def open_network(data: Data, config: TransferConfig) -> tuple[TransferNetwork, dict[str, Any]]:
    """The backbone of `config` with a fresh classifier for the classes of `data.labeled`, and what
    run.json says of it.

    Raises:
        InputError: no classes are named, weights that do not fit, settings of an optimizer.
    """
    names = kept_order(class_names(data.labeled), config.out, config.resume)
    if names is None:
        raise InputError(
            "data.labeled names no classes: give one subfolder per class, or a manifest with the "
            "names of classes as labels"
        )
    backbone = replace(config.backbone, freeze_batch_norm=False)
    torch.manual_seed(config.seed)
    opened = open_classifier(backbone)
    model: Any = opened.model
    model.reset_classifier(len(names))
    model.pretrained_cfg.pop("label_names", None)
    opened.input_size = config.augment.size or opened.input_size
    factors, distilled = _factors(backbone), is_distilled(backbone)
    network = TransferNetwork(opened, factors)
    network.label_names = names
    build_optimizer(network, config.optimizer)  # refuse it before anything is written
    data.accelerator.print(
        f"backbone: learning rates of stem to stage 4 over the classifier's: {factors}"
    )
    facts = {"pretrained": backbone.pretrained, "distilled": distilled, "lr_factors": factors}
    return network, {"backbone": facts}


def _factors(config: BackboneConfig) -> list[float]:
    """Of the learning rates of stem and stages 1 to 4."""
    if not isinstance(config.lr, str):
        return list(config.lr)
    tuned = config.lr == "tuned" or (config.lr == "auto" and is_distilled(config))
    return list(PRESETS["transfer"]) if tuned else [1.0] * PARTS


def probe_before(run: ClassifierRun, network: Classifier) -> None:
    """Write probe.json, {before: {knn, linear}}, of the features as they came; once for a run."""
    if run.config.probe.every_epochs == 0 or run.previous is not None:  # done before
        return
    scores = probe(run, network.to(run.accelerator.device).eval())
    if run.accelerator.is_main_process:
        write_atomically(run.folder.path / PROBE, json.dumps({"before": scores}) + "\n")
        words = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        run.accelerator.print(f"frozen features before the first step: {words or 'no labels'}")
