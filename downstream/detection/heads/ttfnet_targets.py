"""What TTFNet learns at each cell of its map: heatmaps of the classes, and weighted boxes.

Liu et al., Training-Time-Friendly Network for Real-Time Object Detection (arXiv 1909.00700),
"Gaussian Kernels for Training". Where paper and code leave a choice, we do as the authors' code
(github.com/ZJULearning/ttfnet, mmdet/models/anchor_heads/ttf_head.py, `target_single_image`) and
PaddleDetection's (ppdet/data/transform/batch_operators.py, `Gt2TTFTarget`; both Apache-2.0), from
which SSLD's numbers come; written anew for whole batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ALPHA = 0.54
"""Half side of a box's Gaussian / half side of the box (`alpha`, and `beta`, which must be the same
where sizes are learned under the Gaussian)."""


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
    box, x, y, gauss = _gaussians(boxes / stride, size)  # [m] each, m cells under n boxes
    cells = (images[box] * h + y) * w + x
    heatmap = boxes.new_zeros(len(targets) * num_classes * h * w)
    planes = images[box] * num_classes + labels[box]
    heatmap.scatter_reduce_(0, (planes * h + y) * w + x, gauss, "amax")  # not the sum

    owners = torch.full((len(targets) * h * w,), -1, device=boxes.device)
    owners.scatter_reduce_(0, cells, box, "amax")  # the last in order is the smallest
    sums = boxes.new_zeros(len(boxes)).index_add_(0, box, gauss)
    owned = owners[cells] == box  # the sums are those of whole Gaussians, before any is cut
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
    radii = ((inside[:, 1] - inside[:, 0]) / 2 * ALPHA).long()
    sigmas = (2 * radii + 1) / 6
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
