"""What the detectors share: from the many boxes that a network gives to the few that are found in a
picture, and what makes two processes with half of a batch each the training of one with all of it.

For that, images are padded to the largest of the whole batch, and losses are divided by what is in
the whole batch. The references do neither; on one process nothing differs from them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from downstream.backbone.backbone import Backbone
from ssld.common.errors import InputError

Detections = dict[str, Tensor]
"""Of one image: "boxes" float32 [k, 4] xyxy px, "scores" float32 [k] and "labels" int64 [k] from 0,
best first; of some "keypoints" or "masks" (`downstream/detection/networks.py`)."""

MAX_DETECTIONS = 100
"""Per image: what COCO's evaluation looks at (cocoeval.py, `maxDets`), and what TTFNet and YOLOv3
of PaddleDetection keep (`max_per_img`, `keep_top_k`)."""


def require_strides(backbone: Backbone, wanted: tuple[int, ...]) -> None:
    """Raise InputError unless the backbone's maps have these strides."""
    if tuple(backbone.strides) != wanted:
        raise InputError(
            f"the detector needs maps of strides {wanted} but the backbone has "
            f"{tuple(backbone.strides)}; open it with those"
        )


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes xyxy px [b, n, 4] cut to pictures of (h, w) `sizes` [b, 2]."""
    limits = sizes.flip(1).repeat(1, 2).unsqueeze(1).to(boxes)  # [b, 1, w h w h]
    return torch.minimum(boxes.clamp(min=0), limits)


def detections(
    boxes: Tensor, scores: Tensor, labels: Tensor, score_threshold: float
) -> list[Detections]:
    """Per image those with a higher score than `score_threshold` and an area.

    Args:
        boxes: [b, k, 4] xyxy px.
        scores, labels: [b, k].
    """
    kept = []
    for xyxy, score, label in zip(boxes, scores, labels, strict=True):
        keep = (score > score_threshold) & (xyxy[:, 2:] > xyxy[:, :2]).all(1)
        kept.append({"boxes": xyxy[keep], "scores": score[keep], "labels": label[keep]})
    return kept


def mean_count(count: Tensor, training: bool) -> Tensor:
    """The mean over the processes of a number, float32 [], in training. In eval mode it stays: then
    the processes need not have as many batches."""
    count = count.detach().float()
    if training and torch.distributed.is_initialized():
        count = count.clone()
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return count


def rescale(count: Tensor, training: bool, least: float = 1.0) -> Tensor:
    """By what to multiply a loss that was divided by `count` (`least` at least) to have it divided
    by the mean over the processes; 1 with one process."""
    return count.detach().float().clamp(min=least) / mean_count(count, training).clamp(min=least)


def divisor(count: Tensor, training: bool, least: float = 1.0) -> Tensor:
    """What a sum over this process's batch is divided by: `count`, or in training its mean over
    the processes; `least` at least."""
    return mean_count(count, training).clamp(min=least)


def by_image(values: Tensor, images: Tensor, batch: int) -> Tensor:
    """Sums float32 [batch] of values [n] by the number of their image, int64 [n]."""
    return values.new_zeros(batch).index_add(0, images, values)


def images_of(parts: Sequence[Tensor]) -> Tensor:
    """The number of the image of each row of `parts`, [n of one image, ...] each, as one int64."""
    counts = torch.tensor([len(x) for x in parts], device=parts[0].device)
    return torch.arange(len(parts), device=parts[0].device).repeat_interleave(counts)


def pad_to_largest(images: Tensor) -> Tensor:
    """uint8 [b, h, w, 3] -> [b, H, W, 3] of the highest and the widest batch of all processes:
    statistics of batch norm and what is seen at the border depend on the padding."""
    if not torch.distributed.is_initialized():
        return images
    largest = torch.tensor(images.shape[1:3], device=images.device)
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
    height, width = largest.tolist()
    return F.pad(images, (0, 0, 0, width - images.shape[2], 0, height - images.shape[1]))
