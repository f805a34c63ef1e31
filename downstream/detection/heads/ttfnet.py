"""TTFNet: one map at stride 4 with a heatmap per class and one box per cell, no suppression.

Liu et al., Training-Time-Friendly Network for Real-Time Object Detection (arXiv 1909.00700).
Constants and initial values are those of PaddleDetection's TTFNet (Apache-2.0), with which SSLD
was evaluated: ppdet/modeling/anchor_heads/ttf_head.py of its first releases, later
ppdet/modeling/necks/ttf_fpn.py, heads/ttf_head.py and losses/ctfocal_loss.py, which agree with the
authors' mmdet/models/anchor_heads/ttf_head.py (github.com/ZJULearning/ttfnet, Apache-2.0). Written
anew. What differs, and why:

- The bilinear upsampling takes pixels as areas (`align_corners=False`, as PaddleDetection has done
  since 2.0): with `True`, features would depend on the size to which a batch is padded.
- The heatmap's loss is computed from logits, not from probabilities clamped into [1e-4, 1 - 1e-4],
  so that a cell that is very wrong still has a gradient.
- Convolutions before batch norm have no bias, which the norm would take away again.
- Losses are divided by the peaks and weights of the whole batch, not of each process's part.
- Distances start at 16 px, not at 0: they pass a ReLU, and of six random starts at 0 two had a side
  whose output was negative in every cell that learns a box, which then never gets a gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from downstream.backbone.backbone import Backbone
from downstream.detection.heads.decoding import (
    MAX_DETECTIONS,
    Detections,
    clip,
    detections,
    require_strides,
)
from downstream.detection.heads.deformable import DeformableConv
from downstream.detection.heads.over_processes import rescale
from downstream.detection.heads.ttfnet_targets import TTFNetTargets, ttfnet_targets

STRIDES = (4, 8, 16, 32)
PLANES = (256, 128, 64)
"""Channels after each upsampling, from stride 32 to 4."""
SHORTCUTS = (1, 2, 3)
"""Convolutions between the backbone's map of stride 16, 8 and 4 and the sum."""
HEATMAP_CHANNELS, BOX_CHANNELS, HEAD_CONVS = 128, 64, 2
"""Width and number of the 3x3 convolutions before each of the two outputs."""
HEATMAP_PRIOR = 0.01
"""What the heatmaps say everywhere before training (RetinaNet, arXiv 1708.02002, section 4.1)."""
DISTANCE_UNIT_PX = 16.0
"""Distances to a box's sides are relu(output) times this (`wh_offset_base`)."""
EPSILON = 1e-4
BOX_WEIGHT = 5.0
"""Of the boxes' loss, the heatmap's being 1 (`wh_weight`)."""


class TTFNet(nn.Module):
    """Detector over a backbone with maps of strides 4, 8, 16 and 32.

    Neck: three times a deformable convolution, batch norm, ReLU and bilinear doubling, each plus
    1, 2 or 3 convolutions of the backbone's map of that stride (paper, "Overall Design").

    Args:
        backbone: with `strides` and `channels`; float [b, 3, h, w] -> list of maps.
        num_classes: of boxes, without background.
        score_threshold: detections need a higher score (reference: .01).

    Raises:
        InputError: the backbone has other strides.
    """

    def __init__(
        self, backbone: Backbone, num_classes: int, *, score_threshold: float = 0.01
    ) -> None:
        super().__init__()
        channels = backbone.channels
        require_strides(backbone, STRIDES)
        self.backbone, self.num_classes = backbone, num_classes
        self.score_threshold, self.stride = score_threshold, STRIDES[-1]
        inputs = (channels[-1], *PLANES[:-1])
        self.upsample = nn.ModuleList(map(_upsample, inputs, PLANES))
        self.shortcut = nn.ModuleList(map(_shortcut, channels[-2::-1], PLANES, SHORTCUTS))
        self.heatmap = _head(PLANES[-1], HEATMAP_CHANNELS, num_classes, last_std=0.01)
        self.distances = _head(PLANES[-1], BOX_CHANNELS, 4, last_std=0.001)
        _fill_bias(self.heatmap, math.log(HEATMAP_PRIOR / (1 - HEATMAP_PRIOR)))
        _fill_bias(self.distances, 1.0)

    def forward(
        self, images: Tensor, sizes: Tensor, targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[Detections]:
        """Losses of a batch, or what is found in it.

        Args:
            images: float32 [b, 3, H, W], normalised; H and W are multiples of 32.
            sizes: int64 [b, 2], the (h, w) of each that is picture, not padding.
            targets: per image "boxes" float32 [n, 4] xyxy px and "labels" int64 [n] from 0; n may
                be 0. "weights" do not count here: the reference trains TTFNet without mixup.

        Returns:
            With targets "heatmap" and "boxes", float32 scalars, finite also without any box. Both
            are normalised by what is in the batch (number of peaks, sum of weights), in training
            that of all processes. Otherwise per image "boxes" float32 [k, 4] xyxy px within the
            picture, "scores" float32 [k] and "labels" int64 [k], best first, k <= 100.
        """
        heatmap, distances = self.raw(images)
        if targets is None:
            return detections(*self.decode(heatmap, distances, sizes), self.score_threshold)
        h, w = heatmap.shape[-2:]
        wanted = ttfnet_targets(targets, self.num_classes, (h, w), STRIDES[0])
        peaks = rescale((wanted.heatmap == 1).sum(), self.training)
        weights = rescale(wanted.weights.sum() + EPSILON, self.training, EPSILON)
        return {
            "heatmap": heatmap_loss(heatmap, wanted.heatmap) * peaks,
            "boxes": BOX_WEIGHT * box_loss(distances, wanted) * weights,
        }

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """float [b, 3, H, W] -> logits of the heatmaps float32 [b, classes, H/4, W/4], and px from
        each cell to left, top, right and bottom of its box float32 [b, 4, H/4, W/4]."""
        *shallow, x = self.backbone(images)
        for upsample, shortcut, skip in zip(
            self.upsample, self.shortcut, shallow[::-1], strict=True
        ):
            x = upsample(x) + shortcut(skip)  # stride 16, 8, 4
        return self.heatmap(x).float(), self.distances(x).float().relu() * DISTANCE_UNIT_PX

    def decode(
        self, heatmap: Tensor, distances: Tensor, sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The 100 highest peaks: cells not below their 8 neighbours of the same class, which takes
        the place of suppression (as CenterNet, arXiv 1904.07850; `simple_nms` of the reference).

        Args:
            heatmap, distances: what `raw` gives.
            sizes: int64 [b, 2], the (h, w) that is picture.

        Returns:
            Boxes float32 [b, 100, 4] xyxy px within the picture, scores float32 [b, 100], labels
            int64 [b, 100]; best first, all 0 behind the last peak; fewer than 100 where classes x
            cells are fewer.
        """
        scores = heatmap.sigmoid()  # [b, classes, h, w]
        # Max pooling in the place of suppression: a cell stays if it is the highest of its 3 x 3.
        peaks = scores * (scores == F.max_pool2d(scores, 3, stride=1, padding=1))
        h, w = heatmap.shape[-2:]
        # One ranking over classes and cells together: place = class * h * w + cell.
        scores, places = peaks.flatten(1).topk(min(MAX_DETECTIONS, self.num_classes * h * w))
        labels, cells = places // (h * w), places % (h * w)
        reach = distances.flatten(2).gather(2, cells.unsqueeze(1).expand(-1, 4, -1))  # [b, 4, k]
        boxes = clip(_boxes(cells, reach.transpose(1, 2), w), sizes)
        real = scores > 0  # behind the last peak everything is 0
        return boxes * real.unsqueeze(2), scores, labels * real


def heatmap_loss(logits: Tensor, heatmap: Tensor) -> Tensor:
    """Focal loss of CornerNet and CenterNet (paper, "Object Localization"; arXiv
    1808.01244, equation 1), with exponents 2 and 4.

    With p = sigmoid(logits): -(1 - p)^2 log(p) at the peaks, where `heatmap` is 1, and
    -(1 - heatmap)^4 p^2 log(1 - p) elsewhere; summed, divided by the number of peaks (by 1 where
    there is none).

    Args:
        logits, heatmap: float32 [b, classes, h, w].
    """
    peaks = heatmap == 1
    at_peaks = logits[peaks]
    # 1 - sigmoid(x) = sigmoid(-x), and -log sigmoid(x) = softplus(-x): no clamp is needed.
    positive = (-at_peaks).sigmoid().square() * F.softplus(-at_peaks)
    background = (1 - heatmap).square().square()  # 0 at the peaks
    negative = background * logits.sigmoid().square() * F.softplus(logits)
    return (positive.sum() + negative.sum()) / max(len(at_peaks), 1)


def box_loss(distances: Tensor, targets: TTFNetTargets) -> Tensor:
    """Weighted mean over the cells of 1 - GIoU of predicted and wanted box (paper, "Size
    Regression"); the sum of weights is increased by 1e-4, as in both references.

    Args:
        distances: float32 [b, 4, h, w] px to left, top, right and bottom.
    """
    *_, h, w = distances.shape
    reach = distances.permute(0, 2, 3, 1).reshape(-1, 4)[targets.cells]  # [p, 4]
    losses = generalized_box_iou_loss(_boxes(targets.cells % (h * w), reach, w), targets.boxes)
    return (losses * targets.weights).sum() / (targets.weights.sum() + EPSILON)


def _boxes(cells: Tensor, reach: Tensor, width: int) -> Tensor:
    """Cells y * width + x [..., p] and px to each side [..., p, 4] -> xyxy px. A cell stands for
    the px of its upper left corner, as in the references."""
    x, y = cells % width * STRIDES[0], cells // width * STRIDES[0]
    left, top, right, bottom = reach.unbind(-1)
    return torch.stack([x - left, y - top, x + right, y + bottom], dim=-1)


def _upsample(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        DeformableConv(in_channels, out_channels),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
    )


def _shortcut(in_channels: int, out_channels: int, count: int) -> nn.Sequential:
    """`count` 3x3 convolutions with ReLU between, of standard deviation sqrt(2 / fan out)."""
    layers: list[nn.Module] = []
    for i in range(count):
        conv = nn.Conv2d(out_channels if i else in_channels, out_channels, 3, padding=1)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out")
        nn.init.zeros_(conv.get_parameter("bias"))
        layers += [nn.ReLU(inplace=True), conv] if i else [conv]
    return nn.Sequential(*layers)


def _head(in_channels: int, channels: int, outputs: int, *, last_std: float) -> nn.Sequential:
    """Two 3x3 convolutions with ReLU, of standard deviation .01, and one 1x1 of `last_std`
    (ppdet/modeling/heads/ttf_head.py, `HMHead` and `WHHead`)."""
    layers: list[nn.Module] = []
    for i in range(HEAD_CONVS):
        conv = nn.Conv2d(channels if i else in_channels, channels, 3, padding=1)
        layers += [_normal(conv, 0.01), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, _normal(nn.Conv2d(channels, outputs, 1), last_std))


def _normal(conv: nn.Conv2d, std: float) -> nn.Conv2d:
    nn.init.normal_(conv.weight, std=std)
    nn.init.zeros_(conv.get_parameter("bias"))
    return conv


def _fill_bias(head: nn.Sequential, value: float) -> None:
    nn.init.constant_(head.get_parameter(f"{len(head) - 1}.bias"), value)
