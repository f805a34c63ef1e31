"""What an evaluation counts: accuracy where labels exist, and without labels how much the student
agrees with its teacher. Everything adds up over batches and over processes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn import functional as F

from ssld.data.loading import Batch

MEANS = (
    "top1",
    "top5",
    "agreement1",
    "agreement5",
    "divergence",
    "entropy_student",
    "entropy_teacher",
    "feature_cosine",
)
BINS = 15
"""Of the reliability diagram (Guo et al. 2017, section 4)."""
ROUNDING = 1e-12
"""Product of two variances of directions that is float32's rounding."""
EXAMPLES = 12
"""Images kept on which student and teacher disagree most."""


@dataclass(frozen=True)
class Example:
    """One image with what both networks say about it."""

    sample_id: str
    pixels: np.ndarray
    """uint8 [h, w, 3]."""
    label: int
    """Class number, -1 where there is none."""
    distance: float
    student: list[tuple[int, float]]
    """Its three best classes with their probabilities."""
    teacher: list[tuple[int, float]]


class ClassificationMetrics:
    """Sums over images.

    Args:
        num_classes: of student and teacher; 0 where features alone are compared.
        device: where predictions will be.
        feature_size: d of the teacher's features, where they are compared.
    """

    def __init__(self, num_classes: int, device: torch.device, feature_size: int = 0) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.means = zeros(len(MEANS), 2)
        """Sum and weight of each of `MEANS`."""
        self.predicted = zeros(2, num_classes)
        """How often student and teacher predicted each class."""
        self.labeled = zeros(2, num_classes)
        """Of images with a label: how often each class was predicted, and is right."""
        self.by_class = zeros(num_classes, 2)
        """Images of each class, by the teacher's word, and on how many of them both agree."""
        self.bins = zeros(BINS, 3)
        """By the student's confidence: labeled images, summed confidence, hits."""
        self.directions = zeros(2, feature_size)
        """Sums of projected and of the teacher's features, each of length 1."""
        self.examples: list[Example] = []

    def add(
        self,
        batch: Batch,
        logits: Tensor,
        targets: Tensor | None = None,
        distance: Tensor | None = None,
    ) -> None:
        """Count one batch; unreadable images do not count, and predictions that are no numbers are
        never right.

        Args:
            logits: the student's, float [b, classes].
            targets: the teacher's log-probabilities, float [b, classes], where there is a teacher.
            distance: the divergence between both, float [b].
        """
        log_s = F.log_softmax(logits.float(), dim=-1)
        weight, labeled = batch.weight, batch.weight * (batch.labels >= 0)
        five = log_s.topk(min(5, log_s.shape[-1])).indices  # [b, <=5]
        best = five[:, 0]
        five = five.masked_fill(log_s.isnan().any(-1, keepdim=True), -1)
        hits = five == batch.labels[:, None]
        self._add("top1", hits[:, 0], labeled)
        self._add("top5", hits.any(1), labeled)
        self._add("entropy_student", -(log_s.exp() * log_s.clamp(min=-1e5)).sum(-1), weight)
        self.predicted[0].index_add_(0, best, weight.double())
        self.labeled[0].index_add_(0, best, labeled.double())
        self.labeled[1].index_add_(0, batch.labels.clamp(min=0), labeled.double())
        confidence = log_s.gather(1, best[:, None]).exp()[:, 0].nan_to_num(0.0)
        rows = torch.stack([torch.ones_like(confidence), confidence, hits[:, 0].float()], 1)
        number = (confidence * BINS).long().clamp(max=BINS - 1)
        self.bins.index_add_(0, number, (rows * labeled[:, None]).double())
        if targets is None or distance is None:
            return
        wanted = targets.argmax(-1)
        agreed = five == wanted[:, None]
        self._add("agreement1", agreed[:, 0], weight)
        self._add("agreement5", agreed.any(1), weight)
        self._add("divergence", distance, weight)
        finite = targets.clamp(min=-1e5)  # 0 * -inf is NaN, as above
        self._add("entropy_teacher", -(finite.exp() * finite).sum(-1), weight)
        self.predicted[1].index_add_(0, wanted, weight.double())
        self.by_class.index_add_(
            0, wanted, torch.stack([weight, weight * agreed[:, 0]], 1).double()
        )
        self._keep_examples(batch, log_s, targets, distance)

    def add_features(self, batch: Batch, projected: Tensor, features: Tensor) -> None:
        """Count one batch.

        Args:
            projected: the student's features after the projection, float [b, d].
            features: the teacher's, float [b, d].
        """
        both = F.normalize(torch.stack([projected.float(), features.float()]), dim=-1)  # [2, b, d]
        self._add("feature_cosine", both.prod(0).sum(-1), batch.weight)
        self.directions += both[:, batch.weight > 0].double().sum(1)  # [2, d]

    def _add(self, name: str, value: Tensor, weight: Tensor) -> None:
        total = torch.stack([(value.double() * weight).sum(), weight.double().sum()])
        self.means[MEANS.index(name)] += total

    def _keep_examples(
        self, batch: Batch, log_s: Tensor, targets: Tensor, distance: Tensor
    ) -> None:
        score = torch.where(batch.weight > 0, distance.float(), -torch.inf)
        floor = min((e.distance for e in self.examples), default=-1.0)
        for value, i in zip(
            *(x.tolist() for x in score.topk(min(EXAMPLES, len(score)))), strict=True
        ):
            if value == -torch.inf or (len(self.examples) >= EXAMPLES and value <= floor):
                break
            self.examples.append(
                Example(
                    sample_id=batch.ids[i],
                    pixels=batch.images[i].cpu().numpy(),
                    label=int(batch.labels[i]),
                    distance=value,
                    student=_best(log_s[i]),
                    teacher=_best(targets[i]),
                )
            )
        self._sort(self.examples)

    def _sort(self, examples: list[Example]) -> None:
        self.examples = sorted(examples, key=lambda e: (-e.distance, e.sample_id))[:EXAMPLES]

    def reduce(self, accelerator: Accelerator, cut_short: bool) -> bool:
        """Add up over all processes; False when it was cut short on any of them."""
        names = ("means", "predicted", "labeled", "by_class", "bins", "directions")
        parts = [getattr(self, name) for name in names]
        flag = self.means.new_tensor([float(cut_short)])
        packed: Any = accelerator.reduce(torch.cat([flag, *(p.flatten() for p in parts)]), "sum")
        rest = packed[1:].split([p.numel() for p in parts])
        for name, part, values in zip(names, parts, rest, strict=True):
            setattr(self, name, values.view_as(part))
        if accelerator.num_processes > 1:
            self._sort(gather_object(self.examples))
        return not packed[0].item()

    def metrics(self) -> dict[str, float]:
        """Means over the images that count for each; nothing where none does.

        `agreement_chance` is what two networks agree on that predict each class as often as these,
        but independently (Cohen 1960); `top1_chance` is the same of predictions and labels, where
        these are of several classes. `labeled` of `images` have a label. `classes_*` is the share
        of classes ever predicted. `ece` is the expected calibration error (Guo et al. 2017,
        equation 3). Entropies are in nats. Of features see `_of_features`.
        """
        result = {
            name: total / count
            for name, (total, count) in zip(MEANS, self.means.tolist(), strict=True)
            if count > 0
        }
        share = self.predicted / self.predicted.sum(1, keepdim=True).clamp(min=1)
        if "agreement1" in result:
            result["agreement_chance"] = float((share[0] * share[1]).sum())
            result["classes_teacher"] = float((share[1] > 0).double().mean())
        if result:
            result["images"] = self.means[:, 1].max().item()
        if "entropy_student" in result:
            result["classes_student"] = float((share[0] > 0).double().mean())
        if "feature_cosine" in result:
            result |= self._of_features(result["feature_cosine"], result["images"])
        if "top1" in result:
            gaps = (self.bins[:, 1] - self.bins[:, 2]).abs().sum()
            result["ece"] = float(gaps / self.bins[:, 0].sum())
            result |= self._against_labels()
        return result

    def _of_features(self, cosine: float, count: float) -> dict[str, float]:
        """`feature_sameness_*`: the length of the mean of all directions, 1 where all are the same.
        `feature_agreement`: the correlation of the directions about their means, (E p·t − E p·E t)
        / √((1 − ‖E p‖²) (1 − ‖E t‖²)). The mean cosine is high wherever the teacher's features
        have much in common, as those after a ReLU; this is 0 for one answer for all images, however
        close to all of them, and 1 where all directions agree.
        """
        p, t = self.directions / count
        left = float((1 - p @ p) * (1 - t @ t))
        agreement = (cosine - float(p @ t)) / math.sqrt(left) if left > ROUNDING else 0.0
        agreement = cosine if math.isnan(cosine) else agreement
        same = {"feature_sameness_student": float(p.norm())}
        same |= {"feature_sameness_teacher": float(t.norm())}
        return {"feature_agreement": agreement, **same}

    def _against_labels(self) -> dict[str, float]:
        count = self.labeled[1].sum().item()
        result = {"labeled": count}
        if (self.labeled[1] > 0).sum() > 1:  # of one class alone any network's chance is its top-1
            result["top1_chance"] = float((self.labeled[0] * self.labeled[1]).sum()) / count**2
        return result

    def counted(self, name: str) -> tuple[int, int]:
        """(hits, images) of `top1` or another share."""
        total, count = self.means[MEANS.index(name)].tolist()
        return round(total), round(count)


def _best(log_probs: Tensor) -> list[tuple[int, float]]:
    values, classes = log_probs.topk(min(3, len(log_probs)))
    return list(zip(classes.tolist(), values.exp().tolist(), strict=True))
