"""Four synthetic images with coloured rectangles, and a short training on them.

What learns nothing from these in seconds is broken: a wrong target, a wrong sign, dead gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

COLOURS = ((0.9, 0.1, 0.1), (0.1, 0.8, 0.2), (0.2, 0.2, 0.95))


class PlainBackbone(nn.Module):
    """timm's small test network as feature maps, not pretrained, all of it trained."""

    def __init__(self, strides: tuple[int, ...], name: str = "test_resnet") -> None:
        super().__init__()
        self.body = timm.create_model(name, features_only=True)
        reductions = self.body.feature_info.reduction()
        self.picked = [reductions.index(stride) for stride in strides]
        self.strides = strides
        self.channels = tuple(self.body.feature_info.channels()[i] for i in self.picked)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.body(x)
        return [maps[i] for i in self.picked]


def pictures(size: int = 96, count: int = 4, seed: int = 0) -> tuple[Tensor, list[dict]]:
    """Images float32 [count, 3, size, size] about normalised, with 2 or 3 rectangles each that do
    not overlap, and their targets; the class is the colour."""
    rng = np.random.default_rng(seed)
    images = rng.normal(0.5, 0.05, (count, 3, size, size))
    targets = []
    for image in images:
        boxes: list[list[int]] = []
        labels = []
        wanted = int(rng.integers(2, 4))
        while len(boxes) < wanted:
            w, h = rng.integers(size // 5, size // 2, 2)
            x, y = int(rng.integers(0, size - w)), int(rng.integers(0, size - h))
            box = [x, y, x + int(w), y + int(h)]
            if any(_intersect(box, other) for other in boxes):
                continue
            label = int(rng.integers(len(COLOURS)))
            image[:, y : y + h, x : x + w] = np.array(COLOURS[label])[:, None, None]
            boxes.append(box)
            labels.append(label)
        targets.append(
            {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(labels)}
        )
    return torch.from_numpy((images - 0.5) / 0.25).float(), targets


def _intersect(a: list[int], b: list[int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def whole(images: Tensor) -> Tensor:
    """The `sizes` of images that are all picture."""
    return torch.tensor([images.shape[-2:]] * len(images))


def overfit(
    network: nn.Module,
    *,
    size: int = 96,
    steps: int = 100,
    lr: float = 2e-3,
    check_every: int = 10,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    clip: float = 10.0,
) -> tuple[float, int]:
    """Train on `pictures` until AP50 is over .95 or the steps are over; (AP50, steps done).

    The learning rate rises over 10 steps and falls as a cosine; gradients are clipped at `clip`.
    """
    images, targets = pictures(size)
    trained = [p for p in network.parameters() if p.requires_grad]
    sgd = optimizer(trained, lr=lr)
    factor = lambda s: min((s + 1) / 10, 0.5 * (1 + np.cos(np.pi * s / steps)) + 0.05)  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(sgd, factor)
    reached = 0.0
    for step in range(1, steps + 1):
        network.train()
        losses = network(images, whole(images), targets)
        total = sum(term.mean() for term in losses.values())
        assert torch.isfinite(total), losses
        sgd.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(trained, clip)
        sgd.step()
        schedule.step()
        if step % check_every == 0:
            network.eval()
            with torch.no_grad():
                reached = ap50(network(images, whole(images)), targets)
            if reached > 0.95:
                return reached, step
    return reached, steps


def ap50(found: list[dict[str, Any]], targets: list[dict[str, Tensor]]) -> float:
    """Mean over classes of the area under the precision envelope at IoU .5; a plain loop."""
    classes = sorted({int(c) for t in targets for c in t["labels"]})
    return float(np.mean([_class_ap(found, targets, c) for c in classes]))


def _class_ap(found: list[dict], targets: list[dict], label: int) -> float:
    truth = [t["boxes"][t["labels"] == label].tolist() for t in targets]
    ranked = sorted(
        (-float(score), image, box)
        for image, one in enumerate(found)
        for box, score, c in zip(
            one["boxes"].tolist(), one["scores"], one["labels"].tolist(), strict=True
        )
        if c == label
    )
    used, hits = set(), []
    for _, image, box in ranked:
        overlaps = [(iou(box, t), k) for k, t in enumerate(truth[image]) if (image, k) not in used]
        best = max(overlaps, default=(0.0, -1))
        hits.append(best[0] >= 0.5)
        if hits[-1]:
            used.add((image, best[1]))
    positives = sum(map(len, truth))
    right = np.cumsum(hits)
    precision = right / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(sum(envelope[i] for i, hit in enumerate(hits) if hit) / positives)


def iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union
