"""The frozen teacher: data, not state (docs: README, "What a run guarantees").

Loaded strictly, never saved in a checkpoint (its sha256 is), never changed by training. The
reference implementation leaves its teacher's batch norm in train mode, so that its statistics drift
(ppcls/engine/train; measured: one forward pass changes all of them). Here `batch_norm: batch` gives
the same predictions without the drift, because there are no running statistics left to change.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ssld.common.errors import InputError
from ssld.data.labels import differ, table_of
from ssld.data.loading import Batch
from ssld.models.classifier import Classifier
from ssld.models.config import TeacherConfig
from ssld.models.opening import open_network

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

CPU_IMAGES = 8
"""Of a forward pass on a CPU, if nothing else is asked for: the maps of larger ones leave its
caches. An image of 160 px takes MobileNetV2 9 ms in passes of 8, 13 in those of 32, 19 in those of
64 (benchmarks/forward_images.py, docs/performance.md)."""


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Forward passes in `precision` on `device`, whatever an autocast around it says."""
    if precision == "fp32":
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, DTYPES[precision])


class Teacher(nn.Module):
    """One or several frozen networks, averaged in probability space.

    Args:
        networks: what to average.
        configs: each network's settings, with `dtype` filled in.
    """

    def __init__(self, networks: Sequence[Classifier], configs: Sequence[TeacherConfig]) -> None:
        super().__init__()
        tables = [table_of(f"teacher {i}", network) for i, network in enumerate(networks)]
        for table in tables[1:]:
            problem = differ(tables[0], table)
            if problem:
                raise InputError(f"{problem}; averaging needs the same classes in the same order")
        # A ModuleList, so that they move with it; typed as what it holds.
        self.networks = cast(Sequence[Classifier], nn.ModuleList(networks))
        self.configs = list(configs)
        self.num_classes = networks[0].num_classes
        self.label_names = next((x.label_names for x in networks if x.label_names), None)
        self.faulty = torch.zeros(len(networks), 0, dtype=torch.bool)
        """[networks, b]: whose answer to which image of the last pass is no distribution, or whose
        features are not finite. A single class may be impossible (-inf); an infinite logit becomes
        NaN. Looked at when a loss is not finite, so that no step waits for it."""
        for network, config in zip(networks, configs, strict=True):
            if config.batch_norm == "batch":
                _use_batch_statistics(network)
        self.requires_grad_(False)
        self.eval()

    @property
    def class_titles(self) -> list[str] | None:
        """What pages call its classes."""
        return next((x.class_titles for x in self.networks if x.label_names or x.of_imagenet),
                    self.networks[0].class_titles)  # fmt: skip

    @property
    def names(self) -> list[str]:
        """Its networks by the names that tables and messages use."""
        if len(self.networks) == 1:
            return ["teacher"]
        return [f"teacher {i}" for i in range(len(self.networks))]

    @property
    def needs_mixed_batches(self) -> bool:
        """Whether its predictions depend on what else is in a batch: one of a single class, as a
        folder's order gives, has statistics that it has never seen."""
        return any(config.batch_norm == "batch" for config in self.configs)

    def train(self, mode: bool = True) -> Teacher:
        """A teacher stays in eval mode whatever is asked for."""
        return super().train(False)

    @torch.no_grad()
    def forward(
        self, images: Tensor, temperature: float = 1.0, with_features: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Log-probabilities of the mean prediction.

        Args:
            images: uint8 [b, h, w, 3].
            temperature: divides each network's logits (Hinton et al. 2015, section 2).
            with_features: return with them, by the same forward pass, what each network makes its
                logits of: float32 [b, `networks[k].feature_size`] of each network k.

        Returns:
            float32 [b, classes], `log(mean_k softmax(z_k / temperature))`.
        """
        log_probs, features = self._answers(images, temperature, with_features)
        predicted = mean_prediction(log_probs)
        return (predicted, features) if with_features else predicted

    @torch.no_grad()
    def each(self, images: Tensor, temperature: float = 1.0) -> Tensor:
        """As `forward`, but every network's own: float32 [networks, b, classes]."""
        return self._answers(images, temperature, False)[0]

    @torch.no_grad()
    def answers(self, images: Tensor) -> list[Tensor]:
        """What each network has to teach: log-probabilities [b, classes], or its features [b, d]
        where it has no classifier."""
        log_probs, features = self._answers(images, 1.0, not self.num_classes)
        return list(log_probs) if self.num_classes else features

    def _answers(
        self, images: Tensor, temperature: float, with_features: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Log-probabilities float32 [networks, b, classes], and features where they are wanted."""
        if any(module.training for module in self.modules()):
            self.eval()  # someone reached inside and called .train()
        answers, features = [], []
        for network, config in zip(self.networks, self.configs, strict=True):
            logits, *rest = _in_parts(network, config, images, with_features)
            answers.append(F.log_softmax(logits.float() / temperature, dim=-1))
            features += [x.float() for x in rest]
        log_probs = torch.stack(answers)
        self.faulty = log_probs.isnan().any(-1)
        if features:
            self.faulty |= torch.stack([~x.isfinite().all(-1) for x in features])
        return log_probs, features


def mean_prediction(log_probs: Tensor) -> Tensor:
    """[networks, b, classes] -> [b, classes], the log of the mean probability."""
    if len(log_probs) == 1:
        return log_probs[0]
    return log_probs.logsumexp(0) - math.log(len(log_probs))


def _in_parts(
    network: Classifier, config: TeacherConfig, images: Tensor, with_features: bool
) -> list[Tensor]:
    """Logits of all images, and features, in forward passes of at most `micro_batch`."""
    most = max(1, len(images))
    if images.device.type == "cpu" and config.batch_norm != "batch":
        most = min(most, CPU_IMAGES)
    parts = images.split(config.micro_batch or most)
    with autocast(images.device, config.dtype or "fp32"):
        if with_features:
            answers = [network(part, with_features=True) for part in parts]
        else:
            answers = [(network(part),) for part in parts]
    return [x[0] if len(x) == 1 else torch.cat(x) for x in zip(*answers, strict=True)]


def _use_batch_statistics(network: Classifier) -> None:
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None


def open_one(config: TeacherConfig, *, features_alone: bool = False) -> Classifier:
    """The network of one teacher's settings.

    Args:
        features_alone: it needs no classifier.

    Raises:
        InputError: weights that are missing, do not fit or have no classifier.
    """
    network = open_network(
        "teacher",
        arch=config.arch,
        args=config.args,
        pretrained=config.checkpoint is None,
        checkpoint=config.checkpoint,
        input_size=config.input_size,
        mean=config.mean,
        std=config.std,
    )
    if not features_alone:
        network.require_classes("teacher")
    return network


def open_teacher(
    configs: Sequence[TeacherConfig], precision: str, *, features_alone: bool = False
) -> tuple[Teacher, str]:
    """Load the teachers; returns them with their sha256, taken before batch norm is changed.

    Args:
        features_alone: they need no classifier.

    Raises:
        InputError: weights that are missing or do not fit, or have no classifier.
    """
    networks = [open_one(config, features_alone=features_alone) for config in configs]
    digests = [network.sha256() for network in networks]
    resolved = [dataclasses.replace(c, dtype=c.dtype or precision) for c in configs]
    digest = (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )
    return Teacher(networks, resolved), digest


MIN_DIFFERENT_IMAGES = 8
"""Different images, below which that all answers are the same proves nothing."""
PIXEL_DIFFERENCE = 1.0
"""Mean difference of pixels in 0..255, from which on two images are different."""
SAME_LOG_PROB = 1e-6
"""Difference of log-probabilities that is float32's rounding."""
SAMPLES_NAMED = 8
"""Samples that a message names."""


def samples(ids: Sequence[str]) -> str:
    """Some sample ids as text."""
    more = f" and {len(ids) - SAMPLES_NAMED} more" if len(ids) > SAMPLES_NAMED else ""
    return f"{', '.join(ids[:SAMPLES_NAMED])}{more}"


def not_finite(log_probs: Tensor) -> Tensor:
    """bool [..., b]: which rows of float [..., b, classes] are no distribution; see
    `Teacher.faulty`."""
    return log_probs.isnan().any(-1)


def constant(log_probs: Tensor, images: Tensor) -> bool:
    """Whether images that differ all get one answer.

    Args:
        log_probs: float [b, classes], or features [b, d].
        images: uint8 [b, h, w, 3].
    """
    pixels = images.float()
    different = (pixels - pixels[:1]).abs().mean((1, 2, 3)) > PIXEL_DIFFERENCE
    if int(different.sum()) < MIN_DIFFERENT_IMAGES:
        return False
    finite = log_probs.clamp(min=-1e5)
    return bool(
        torch.allclose(finite, finite[:1].expand_as(finite), rtol=SAME_LOG_PROB, atol=SAME_LOG_PROB)
    )


def describe_faults(
    names: Sequence[str], faults: Tensor, weight: Tensor, ids: Sequence[str]
) -> str | None:
    """Which network of a teacher predicts no numbers, and for which readable samples, or None.

    Args:
        faults: bool [networks, b]; see `Teacher.faulty`.
        weight: float [b], 0 for what could not be read.
    """
    for name, faulty in zip(names, faults, strict=True):
        rows: list[int] = (faulty & (weight > 0)).nonzero().flatten().tolist()
        if rows:
            return (
                f"the {name}'s predictions are not finite (NaN or infinite) for the samples "
                f"{samples([ids[i] for i in rows])}"
            )
    return None


def without_numbers(teacher: Teacher, batch: Batch) -> str | None:
    """`describe_faults` a batch that the teacher has not answered yet."""
    teacher.answers(batch.images if batch.other_images is None else batch.other_images)
    return describe_faults(teacher.names, teacher.faulty, batch.weight, batch.ids)


CURE = (
    "check teacher.checkpoint, and set teacher.dtype to fp32 or bf16 where it is fp16, which "
    "overflows beyond 65,504"
)


def require_numbers(teacher: Teacher, batch: Batch) -> None:
    """
    Raises:
        InputError: some of what the teacher has just predicted of a batch are no numbers.
    """
    problem = describe_faults(teacher.names, teacher.faulty, batch.weight, batch.ids)
    if problem:
        raise InputError(f"{problem}; {CURE}, or look at these images")
