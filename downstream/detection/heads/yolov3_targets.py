"""The anchors of YOLOv3, the boxes that they predict, and which of them learns which object.

Redmon and Farhadi, YOLOv3 (arXiv 1804.02767), section 2.1 and 2.3. Where the paper leaves a choice,
we do as PaddleDetection (ppdet/data/transform/batch_operators.py, `Gt2YoloTarget`; Apache-2.0),
with which SSLD was evaluated; written anew for whole batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STRIDES = (8, 16, 32)
ANCHORS = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
"""Width and height in px of the anchors at strides 8, 16 and 32, found on COCO (paper, 2.3)."""
ANCHORS_PER_CELL = 3

Size = tuple[int, int]


@dataclass(frozen=True)
class Grid:
    """The n predictions of an image: by stride, anchor, row, column, in that order."""

    corners: Tensor
    """float32 [n, 2]: x, y in px of the upper left corner of each one's cell."""
    anchors: Tensor
    """float32 [n, 2]: width, height in px of its anchor."""
    strides: Tensor
    """float32 [n, 1]: side in px of its cell."""


@dataclass(frozen=True)
class YOLOv3Targets:
    """The p predictions of a batch that have an object to predict."""

    places: Tensor
    """int64 [p]: image * n + prediction, each at most once."""
    xy: Tensor
    """float32 [p, 2]: centre within the cell, in cells: what sigmoid of the output should be."""
    wh: Tensor
    """float32 [p, 2]: log(side of the object / side of the anchor)."""
    classes: Tensor
    """float32 [p, classes], 1 at the object's."""
    scales: Tensor
    """float32 [p]: 2 - area of the object / area of the image, so that small ones count more."""
    weights: Tensor
    """float32 [p]: share of the object in a mixed image, 1 where nothing is mixed."""


def grid(sizes: Sequence[Size], device: torch.device) -> Grid:
    """The predictions over maps of (h, w) cells at strides 8, 16 and 32."""
    corners, anchors, strides = [], [], []
    for (h, w), stride, shapes in zip(sizes, STRIDES, ANCHORS, strict=True):
        y, x = torch.meshgrid(
            torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij"
        )
        corners.append(torch.stack([x, y], dim=-1).view(-1, 2).repeat(ANCHORS_PER_CELL, 1) * stride)
        anchors.append(torch.tensor(shapes, device=device).repeat_interleave(h * w, dim=0))
        strides.append(torch.full((ANCHORS_PER_CELL * h * w, 1), stride, device=device))
    return Grid(torch.cat(corners).float(), torch.cat(anchors).float(), torch.cat(strides).float())


def decode_boxes(outputs: Tensor, where: Grid) -> Tensor:
    """Outputs tx, ty, tw, th [b, n, 4] -> boxes xyxy px [b, n, 4] (paper, section 2.1): the centre
    is sigmoid(tx, ty) cells from its cell's corner, the sides exp(tw, th) times the anchor's."""
    centres = where.corners + outputs[..., :2].sigmoid() * where.strides
    halves = outputs[..., 2:4].exp() * where.anchors / 2  # [b, n, 2]
    return torch.cat([centres - halves, centres + halves], dim=-1)


def yolov3_targets(
    targets: Sequence[dict[str, Tensor]], num_classes: int, sizes: Sequence[Size]
) -> YOLOv3Targets:
    """Give each object to the one anchor of the nine that overlaps it most when both have the same
    centre (the first of equals), in the cell of that anchor's map that holds the object's centre.

    Of objects that fall on the same anchor of the same cell the last one is learned, with the
    classes of all. Objects without area or of weight 0 are left out.

    Args:
        targets: per image "boxes" float32 [n, 4] xyxy px, "labels" int64 [n] and optionally
            "weights" float32 [n]; n may be 0.
        sizes: (h, w) of the maps at strides 8, 16 and 32.
    """
    boxes = torch.cat([t["boxes"] for t in targets]).float()
    labels = torch.cat([t["labels"] for t in targets])
    weights = torch.cat(
        [t["weights"] if "weights" in t else torch.ones_like(t["boxes"][:, 0]) for t in targets]
    ).float()
    counts = torch.tensor([len(t["boxes"]) for t in targets], device=boxes.device)
    images = torch.arange(len(targets), device=boxes.device).repeat_interleave(counts)
    sides = boxes[:, 2:] - boxes[:, :2]
    real = (sides > 0).all(1) & (weights > 0)
    boxes, sides, labels, images, weights = (
        x[real] for x in (boxes, sides, labels, images, weights)
    )

    anchors = boxes.new_tensor(ANCHORS).view(-1, 2)  # [9, 2], level * 3 + anchor
    best = _overlap(sides, anchors).argmax(1)
    cells = (
        (boxes[:, :2] + boxes[:, 2:])
        / 2
        / boxes.new_tensor(STRIDES)[best // ANCHORS_PER_CELL, None]
    )
    places, corners = _places(best, cells, sizes)
    places = images * sum(ANCHORS_PER_CELL * h * w for h, w in sizes) + places

    # Several objects at one place: the last one's box counts, as a loop that overwrites would have
    # it (on a GPU plain index assignment does not say which one stays), and the classes of all.
    order = torch.arange(len(boxes), device=boxes.device)
    taken, owners = places.unique(return_inverse=True)
    last = owners.new_zeros(len(taken)).scatter_reduce_(0, owners, order, "amax")
    classes = boxes.new_zeros(len(taken), num_classes)
    classes[owners, labels] = 1
    # Of the padded picture in px, from the finest map.
    area = STRIDES[0] ** 2 * sizes[0][0] * sizes[0][1]
    return YOLOv3Targets(
        places=taken,
        xy=(cells - corners)[last],
        wh=(sides / anchors[best]).log()[last],
        classes=classes,
        scales=(2 - sides.prod(1) / area)[last],
        weights=weights[last],
    )


def _overlap(sides: Tensor, anchors: Tensor) -> Tensor:
    """IoU of boxes [n, 2] and anchors [9, 2] about the same centre, [n, 9]."""
    shared = torch.minimum(sides.unsqueeze(1), anchors).prod(2)
    return shared / (sides.prod(1, keepdim=True) + anchors.prod(1) - shared)


def _places(best: Tensor, cells: Tensor, sizes: Sequence[Size]) -> tuple[Tensor, Tensor]:
    """Number of the prediction by anchor [n] and centre in cells [n, 2]; its cell [n, 2]."""
    level, anchor = best // ANCHORS_PER_CELL, best % ANCHORS_PER_CELL
    h, w = torch.tensor(sizes, device=best.device)[level].unbind(1)
    counts = [ANCHORS_PER_CELL * h * w for h, w in sizes]
    starts = torch.tensor([0, counts[0], counts[0] + counts[1]], device=best.device)
    # A centre on the right or lower edge lies in the last cell.
    corners = torch.minimum(cells.long().clamp(min=0), torch.stack([w, h], dim=1) - 1)
    return starts[level] + (anchor * h + corners[:, 1]) * w + corners[:, 0], corners
