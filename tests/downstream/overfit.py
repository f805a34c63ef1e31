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

from downstream.backbone.config import BackboneConfig

Similarity = Callable[[dict[str, Tensor], int, dict[str, Tensor], int], float]
"""Of what is found, its number, a target and the object's number."""
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


def small_backbone(detector: str) -> BackboneConfig:
    """timm's small test network, or a narrow SpineNet for what wants P3 to P7."""
    if detector != "retinanet_spinenet":
        return BackboneConfig("test_resnet", pretrained=False)
    narrow = {"filter_size_scale": 0.1, "endpoints_num_filters": 16}
    return BackboneConfig("spinenet49", narrow, pretrained=False)


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


def triangles(size: int = 96, count: int = 4) -> tuple[Tensor, list[dict]]:
    """`pictures` where only the lower left triangle of each rectangle has the colour: that are
    "masks"; "keypoints" are three points in it, each towards a corner."""
    images, targets = pictures(size, count)
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    for image, target in zip(images, targets, strict=True):
        masks, keypoints = [], []
        for x1, y1, x2, y2 in target["boxes"].tolist():
            inside = (x > x1) & (x < x2) & (y > y1) & (y < y2)
            mask = inside & ((y - y1) * (x2 - x1) > (x - x1) * (y2 - y1))
            image[:, inside & ~mask] = 0
            corners = torch.tensor([[x1, y1], [x1, y2], [x2, y2]])
            points = 0.7 * corners + 0.3 * corners.mean(0)
            keypoints.append(torch.cat([points, torch.full((3, 1), 2.0)], dim=1))
            masks.append(mask.to(torch.uint8))
        target["keypoints"], target["masks"] = torch.stack(keypoints), torch.stack(masks)
    return images, targets


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
    similarity: Similarity | None = None,
) -> tuple[float, int]:
    """Train on `pictures`, with another `similarity` than the boxes' on `triangles`, until AP50 is
    over .95 or the steps are over; (AP50, steps done).

    The learning rate rises over 10 steps and falls as a cosine; gradients are clipped at `clip`.
    """
    images, targets = triangles(size) if similarity else pictures(size)
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
                reached = ap50(network(images, whole(images)), targets, similarity or boxes_iou)
            if reached > 0.95:
                return reached, step
    return reached, steps


def boxes_iou(found: dict[str, Tensor], i: int, target: dict[str, Tensor], j: int) -> float:
    return iou(found["boxes"][i].tolist(), target["boxes"][j].tolist())


def oks(found: dict[str, Tensor], i: int, target: dict[str, Tensor], j: int) -> float:
    """Object keypoint similarity with COCO's 2 sigma .1, the box's area as the object's."""
    x1, y1, x2, y2 = target["boxes"][j].tolist()
    off = (found["keypoints"][i, :, :2] - target["keypoints"][j, :, :2]).square().sum(1)
    return float((-off / (2 * 0.1**2 * (x2 - x1) * (y2 - y1))).exp().mean())


def masks_iou(found: dict[str, Tensor], i: int, target: dict[str, Tensor], j: int) -> float:
    """A pixel is of the object where the cell of the box that holds its centre says so."""
    wanted, cells = target["masks"][j].bool(), found["masks"][i]
    x1, y1, x2, y2 = found["boxes"][i].tolist()
    height, width = wanted.shape
    rows = ((torch.arange(height) + 0.5 - y1) / (y2 - y1) * len(cells)).floor().long()
    columns = ((torch.arange(width) + 0.5 - x1) / (x2 - x1) * len(cells)).floor().long()
    there = ((rows >= 0) & (rows < len(cells)))[:, None] & (columns >= 0) & (columns < len(cells))
    limit = len(cells) - 1
    mask = (cells[rows.clamp(0, limit)][:, columns.clamp(0, limit)] >= 0.5) & there
    return float((mask & wanted).sum() / (mask | wanted).sum())


def ap50(
    found: list[dict[str, Any]],
    targets: list[dict[str, Tensor]],
    similarity: Similarity = boxes_iou,
) -> float:
    """Mean over classes of the area under the precision envelope at .5; a plain loop."""
    classes = sorted({int(c) for t in targets for c in t["labels"]})
    return float(np.mean([_class_ap(found, targets, c, similarity) for c in classes]))


def _class_ap(found: list[dict], targets: list[dict], label: int, similarity: Similarity) -> float:
    truth = [(t["labels"] == label).nonzero()[:, 0].tolist() for t in targets]
    ranked = sorted(
        (-float(score), image, i)
        for image, one in enumerate(found)
        for i, (score, c) in enumerate(zip(one["scores"], one["labels"].tolist(), strict=True))
        if c == label
    )
    used, hits = set(), []
    for _, image, i in ranked:
        overlaps = [
            (similarity(found[image], i, targets[image], k), k)
            for k in truth[image]
            if (image, k) not in used
        ]
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
