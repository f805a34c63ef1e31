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

What each cell learns (`ttfnet_targets`; paper, "Gaussian Kernels for Training") is as in the
authors' `target_single_image` and PaddleDetection's `Gt2TTFTarget`
(ppdet/data/transform/batch_operators.py), for whole batches at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from downstream.backbone.backbone import Backbone
from downstream.detection.heads.deformable import DeformableConv
from downstream.detection.heads.detector import (
    MAX_DETECTIONS,
    Detections,
    by_image,
    clip,
    detections,
    require_strides,
    rescale,
)

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
ALPHA = 0.54
"""Half side of a box's Gaussian / half side of the box (`alpha`, and `beta`, which must be the same
where sizes are learned under the Gaussian)."""


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
            With targets "heatmap" and "boxes" of each image, float32 [b], finite also without any
            box. Both are normalised by what is in the batch (number of peaks, sum of weights), in
            training that of all processes. Otherwise per image "boxes" float32 [k, 4] xyxy px
            within the picture, "scores" float32 [k] and "labels" int64 [k], best first, k <= 100.
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
        *shallow, x = self.backbone(images)  # strides 4, 8, 16; x: stride 32
        for upsample, shortcut, skip in zip(
            self.upsample, self.shortcut, shallow[::-1], strict=True
        ):
            x = upsample(x) + shortcut(skip)  # [b, 256, H/16, W/16], then 128 at 8, 64 at 4
        # float32 from here on: decoding and losses in bfloat16 would round 300 px to even numbers.
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
        labels, cells = places // (h * w), places % (h * w)  # [b, k] each
        reach = distances.flatten(2).gather(2, cells.unsqueeze(1).expand(-1, 4, -1))  # [b, 4, k]
        boxes = clip(_boxes(cells, reach.transpose(1, 2), w), sizes)
        real = scores > 0  # [b, k]; behind the last peak everything is 0
        return boxes * real.unsqueeze(2), scores, labels * real


def heatmap_loss(logits: Tensor, heatmap: Tensor) -> Tensor:
    """Focal loss of CornerNet and CenterNet (paper, "Object Localization"; arXiv
    1808.01244, equation 1), with exponents 2 and 4. Each image's part, [b], times the images: the
    mean is the batch's.

    With p = sigmoid(logits): -(1 - p)^2 log(p) at the peaks, where `heatmap` is 1, and
    -(1 - heatmap)^4 p^2 log(1 - p) elsewhere; summed, divided by the number of peaks in the batch
    (by 1 where there is none).

    Args:
        logits, heatmap: float32 [b, classes, h, w].
    """
    peaks = heatmap == 1
    at_peaks = logits[peaks]
    # 1 - sigmoid(x) = sigmoid(-x), and -log sigmoid(x) = softplus(-x): no clamp is needed.
    positive = (-at_peaks).sigmoid().square() * F.softplus(-at_peaks)
    background = (1 - heatmap).square().square()  # 0 at the peaks
    negative = background * logits.sigmoid().square() * F.softplus(logits)
    images, batch = torch.where(peaks)[0], len(logits)
    sums = by_image(positive, images, batch) + negative.flatten(1).sum(1)
    return batch * sums / max(len(at_peaks), 1)


def box_loss(distances: Tensor, targets: TTFNetTargets) -> Tensor:
    """Weighted mean over the cells of 1 - GIoU of predicted and wanted box (paper, "Size
    Regression"); the sum of weights is increased by 1e-4, as in both references. Each image's part,
    [b], times the images: the mean is the batch's.

    Args:
        distances: float32 [b, 4, h, w] px to left, top, right and bottom.
    """
    batch, _, h, w = distances.shape
    reach = distances.permute(0, 2, 3, 1).reshape(-1, 4)[targets.cells]  # [p, 4]
    losses = generalized_box_iou_loss(_boxes(targets.cells % (h * w), reach, w), targets.boxes)
    sums = by_image(losses * targets.weights, targets.cells // (h * w), batch)
    return batch * sums / (targets.weights.sum() + EPSILON)


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


@dataclass(frozen=True)
class TTFNetTargets:
    """The targets of a batch of b images with maps of h x w cells."""

    heatmap: Tensor
    """float32 [b, classes, h, w]: 1 at the centres, Gaussian around them, 0 elsewhere."""
    cells: Tensor
    """int64 [p]: the cells that learn a box, as (image * h + y) * w + x, each at most once."""
    boxes: Tensor
    """float32 [p, 4]: its box, xyxy px."""
    weights: Tensor
    """float32 [p]: how much it counts. All cells of a box that no other box covers add up to the
    logarithm of the box's area in px^2."""


def ttfnet_targets(
    targets: Sequence[dict[str, Tensor]], num_classes: int, size: tuple[int, int], stride: int
) -> TTFNetTargets:
    """Assign the boxes of a batch to the cells of its map.

    A box of w x h px whose centre lies in cell (x, y) of the map has a Gaussian there, cut off at
    the radii rx = int(ALPHA w / stride / 2) and ry, with sigma (2 r + 1) / 6 in each direction
    ("Object Localization"). A class's heatmap is the highest of its boxes' Gaussians. The cells of
    a Gaussian g also learn the box, each with the weight log(area) g / sum(g) ("Size Regression");
    where boxes of any class meet, the smallest has the cell (large boxes are drawn first), and what
    the others lose is not made up for. The area counts as (w + 1)(h + 1), as in both references,
    which keeps the weights of the tiniest boxes positive.

    Args:
        targets: per image "boxes" float32 [n, 4] xyxy px and "labels" int64 [n]; n may be 0.
        size: (h, w) of the map.
        stride: px per cell.
    """
    h, w = size
    boxes = torch.cat([t["boxes"] for t in targets]).float()
    labels = torch.cat([t["labels"] for t in targets])
    counts = torch.tensor([len(t["boxes"]) for t in targets], device=boxes.device)
    images = torch.arange(len(targets), device=boxes.device).repeat_interleave(counts)

    # Large boxes first, so that where Gaussians meet the highest number is the smallest box's.
    areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    order = areas.argsort(descending=True, stable=True)
    boxes, labels, images, areas = boxes[order], labels[order], images[order], areas[order]

    # All maps of the batch lie in one vector: what every box writes is one scatter, not a loop.
    # box: number of the box in the order above, so a higher number is a smaller box.
    box, x, y, gauss = _gaussians(boxes / stride, size)  # [m] each, m cells under n boxes
    cells = (images[box] * h + y) * w + x
    heatmap = boxes.new_zeros(len(targets) * num_classes * h * w)
    planes = images[box] * num_classes + labels[box]  # [m], of b * classes
    heatmap.scatter_reduce_(0, (planes * h + y) * w + x, gauss, "amax")  # not the sum

    owners = torch.full((len(targets) * h * w,), -1, device=boxes.device)
    owners.scatter_reduce_(0, cells, box, "amax")  # the last in order is the smallest
    sums = boxes.new_zeros(len(boxes)).index_add_(0, box, gauss)
    owned = owners[cells] == box  # [m]; the sums are those of whole Gaussians, before any is cut
    box, gauss = box[owned], gauss[owned]
    return TTFNetTargets(
        heatmap=heatmap.view(len(targets), num_classes, h, w),
        cells=cells[owned],
        boxes=boxes[box],
        weights=areas[box].log() * gauss / sums[box],
    )


def _gaussians(boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The cells under the boxes' Gaussians, box after box, in cells: number of the box, x, y,
    value, [m] each. Only they are listed, not whole maps: many times fewer."""
    limit = boxes.new_tensor([size[1] - 1, size[0] - 1])
    inside = torch.minimum(boxes.view(-1, 2, 2).clamp(min=0), limit)  # [n, corner, xy]
    radii = ((inside[:, 1] - inside[:, 0]) / 2 * ALPHA).long()  # [n, xy], in cells
    sigmas = (2 * radii + 1) / 6  # so that the Gaussian ends at 3 sigma
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    centres = torch.minimum(centres.clamp(min=0), limit).long()
    first = (centres - radii).clamp(min=0)
    last = torch.minimum(centres + radii, limit.long())
    widths, heights = (last - first + 1).unbind(1)

    # Each box's window of cells, row by row, one box after the other: the place in the window is
    # the place in the list less the cells of all boxes before.
    counts = widths * heights  # [n]
    box = torch.arange(len(boxes), device=boxes.device).repeat_interleave(counts)
    place = torch.arange(len(box), device=boxes.device) - (counts.cumsum(0) - counts)[box]
    cell = first[box] + torch.stack([place % widths[box], place // widths[box]], dim=1)
    distance = (cell - centres[box]) / sigmas[box]
    gauss = torch.exp(-distance.square().sum(1) / 2)
    return box, cell[:, 0], cell[:, 1], gauss
