"""YOLOv3: three maps, three anchors per cell, each with a box, an objectness and class scores.

Redmon and Farhadi, YOLOv3: An Incremental Improvement (arXiv 1804.02767). Constants are those of
PaddleDetection's YOLOv3 (Apache-2.0), with which SSLD was evaluated: configs/yolov3/_base_/
yolov3_darknet53.yml, ppdet/modeling/necks/yolo_fpn.py, heads/yolo_head.py, losses/yolo_loss.py and
backbones/darknet.py (`ConvBNLayer`), written anew. YOLOv3-DCNv2 has the 3x3 convolutions of the
backbone's last stage made deformable (`dcn_v2_stages: [5]`). Which anchor learns which object is
as in `Gt2YoloTarget` of ppdet/data/transform/batch_operators.py, for whole batches at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, box_iou

from downstream.backbone.backbone import Backbone
from downstream.detection.heads.deformable import deform_last_stage
from downstream.detection.heads.detector import (
    MAX_DETECTIONS,
    Detections,
    by_image,
    clip,
    require_strides,
)

IGNORE_IOU = 0.7
"""A prediction without an object that overlaps one more than this is not told that it is wrong
(`ignore_thresh`; the paper's section 2.1 has .5)."""
CANDIDATES_PER_CLASS = 1000
"""Of an image that are looked at for overlaps (`nms_top_k`)."""
LEAKY_SLOPE = 0.1
"""Of the activations (darknet; `F.leaky_relu(out, 0.1)`)."""
STRIDES = (8, 16, 32)
ANCHORS = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
"""Width and height in px of the anchors at strides 8, 16 and 32, found on COCO (paper, 2.3)."""
ANCHORS_PER_CELL = 3
Size = tuple[int, int]


class YOLOv3(nn.Module):
    """Detector over a backbone with maps of strides 8, 16 and 32.

    Args:
        backbone: with `strides` and `channels`; float [b, 3, h, w] -> list of maps. With `dcn` it
            is changed in place.
        num_classes: of boxes, without background.
        dcn: make the 3x3 convolutions of the backbone's last stage deformable. They start as what
            they were; that of their distances and factors is new and lies in the backbone.
        width: channels of the neck at stride 32, halved at each finer one (reference: 512).
        score_threshold: detections need a higher score, objectness x class (reference: .01).
        nms_threshold: of two of a class that overlap more, the worse one is dropped (.45).

    Raises:
        InputError: the backbone has other strides; `dcn` and its last stage has no 3x3 convolution
            that could become deformable.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        dcn: bool = False,
        width: int = 512,
        score_threshold: float = 0.01,
        nms_threshold: float = 0.45,
    ) -> None:
        super().__init__()
        channels = backbone.channels
        require_strides(backbone, STRIDES)
        if dcn:
            deform_last_stage(backbone, STRIDES[-1])
        self.backbone, self.num_classes, self.stride = backbone, num_classes, STRIDES[-1]
        self.score_threshold, self.nms_threshold = score_threshold, nms_threshold
        # From the deepest map on; a finer one also gets the route of the one before, halved.
        widths = [width, width // 2, width // 4]
        inputs = [c + w for c, w in zip(channels[::-1], [0, *widths[1:]], strict=True)]
        self.block = nn.ModuleList(map(_Block, inputs, widths))
        self.route = nn.ModuleList(_conv(w, w // 2, 1) for w in widths[:-1])
        self.output = nn.ModuleList(
            nn.Conv2d(2 * w, ANCHORS_PER_CELL * (5 + num_classes), 1) for w in widths
        )

    def forward(
        self, images: Tensor, sizes: Tensor, targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[Detections]:
        """Losses of a batch, or what is found in it.

        Args:
            images: float32 [b, 3, H, W], normalised; H and W are multiples of 32.
            sizes: int64 [b, 2], the (h, w) of each that is picture, not padding.
            targets: per image "boxes" float32 [n, 4] xyxy px, "labels" int64 [n] from 0 and, in
                images mixed of two, "weights" float32 [n], the share of each box's image; n may
                be 0.

        Returns:
            With targets "xy", "wh", "objectness" and "classes", float32 [b], finite also without
            any box: sums over each image. Otherwise per image
            "boxes" float32 [k, 4] xyxy px within the picture, "scores" float32 [k] and "labels"
            int64 [k], best first, k <= 100.
        """
        outputs, maps = self.raw(images)
        if targets is not None:
            return yolov3_losses(outputs, maps, targets)
        boxes, scores = self.decode(outputs, maps, sizes)
        return [self.select(*one) for one in zip(boxes, scores, strict=True)]

    def raw(self, images: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
        """float [b, 3, H, W] -> outputs float32 [b, n, 5 + classes] (tx, ty, tw, th, objectness,
        classes) of the n predictions by stride, anchor, row, column; (h, w) of the three maps."""
        features = self.backbone(images)
        outputs, maps, route = [], [], None
        for i, x in enumerate(features[::-1]):
            if route is not None:
                up = F.interpolate(self.route[i - 1](route), scale_factor=2.0, mode="nearest")
                x = torch.cat([up, x], dim=1)
            route, tip = self.block[i](x)  # from stride 32 to 8: the route goes on to the finer map
            out = self.output[i](tip).float()
            b, _, h, w = out.shape
            # [b, anchors * (5 + classes), h, w] -> [b, anchors * h * w, 5 + classes]
            out = out.view(b, ANCHORS_PER_CELL, 5 + self.num_classes, h, w)
            outputs.append(out.permute(0, 1, 3, 4, 2).reshape(b, -1, 5 + self.num_classes))
            maps.append((h, w))
        return torch.cat(outputs[::-1], dim=1), maps[::-1]

    def decode(
        self, outputs: Tensor, maps: list[tuple[int, int]], sizes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What `raw` gives -> boxes float32 [b, n, 4] xyxy px within pictures of (h, w) `sizes`
        [b, 2], and scores float32 [b, n, classes], before any is dropped."""
        boxes = decode_boxes(outputs, grid(maps, outputs.device))
        return clip(boxes, sizes), outputs[..., 4:5].sigmoid() * outputs[..., 5:].sigmoid()

    def select(self, boxes: Tensor, scores: Tensor) -> Detections:
        """The at most 100 best of one image's boxes [n, 4] with scores [n, classes] that no better
        one of their class overlaps: of the 1000 best of each class, those above the threshold."""
        # Best of each class [k, classes], then of all that are above the threshold one list.
        best, places = scores.topk(min(CANDIDATES_PER_CLASS, len(scores)), dim=0)
        rank, labels = (best > self.score_threshold).nonzero(as_tuple=True)  # [m] each
        boxes, scores = boxes[places[rank, labels]], best[rank, labels]
        real = (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes, scores, labels = boxes[real], scores[real], labels[real]
        keep = batched_nms(boxes, scores, labels, self.nms_threshold)[:MAX_DETECTIONS]
        return {"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]}


def yolov3_losses(
    outputs: Tensor, maps: list[tuple[int, int]], targets: list[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Sums over each image, float32 [b] (ppdet/modeling/losses/yolo_loss.py takes their mean).

    "xy": cross-entropy of sigmoid(tx, ty) and the centre; "wh": L1 of (tw, th) and the logarithms;
    both times `scales`. "classes": cross-entropy of each class. "objectness": cross-entropy with 1
    for predictions that have an object, 0 for the others except those whose box overlaps any
    object of the image more than .7. Whatever belongs to an object counts with its `weights`.

    Args:
        outputs, maps: what `YOLOv3.raw` gives.
        targets: as of `YOLOv3.forward`.
    """
    b, n, channels = outputs.shape
    wanted = yolov3_targets(targets, channels - 5, maps)
    flat = outputs.view(b * n, channels)  # place = image * n + prediction
    own = flat[wanted.places]  # [p, 5 + classes]: the predictions that have an object
    place = (wanted.scales * wanted.weights).unsqueeze(1)
    objectness = flat.new_zeros(b * n).index_fill(0, wanted.places, 1)
    # What finds an object well enough without being its own prediction is neither right nor wrong.
    counts = _unlike_objects(outputs.detach(), maps, targets).view(-1).to(flat)
    counts[wanted.places] = wanted.weights
    entropies = counts * _cross_entropy(flat[:, 4], objectness)
    losses = {
        "xy": place * _cross_entropy(own[:, :2], wanted.xy),
        "wh": place * (own[:, 2:4] - wanted.wh).abs(),
        "classes": wanted.weights.unsqueeze(1) * _cross_entropy(own[:, 5:], wanted.classes),
    }  # [p, ...] each, of the objects
    images = wanted.places // n
    sums = {name: by_image(loss.sum(1), images, b) for name, loss in losses.items()}
    return {**sums, "objectness": entropies.view(b, n).sum(1)}


def _cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")


def _unlike_objects(
    outputs: Tensor, maps: list[tuple[int, int]], targets: list[dict[str, Tensor]]
) -> Tensor:
    """Whether a prediction's box overlaps no object of its image more than .7, bool [b, n]."""
    boxes = decode_boxes(outputs, grid(maps, outputs.device))
    unlike = torch.ones(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    for i, target in enumerate(targets):
        if len(target["boxes"]):
            unlike[i] = (box_iou(boxes[i], target["boxes"].float()) <= IGNORE_IOU).all(1)
    return unlike


class _Block(nn.Module):
    """Five convolutions 1-3-1-3-1 whose result goes on to the finer map (the route), and one 3x3
    from which the outputs come (paper, section 2.3; `YoloDetBlock`)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            _conv(in_channels, channels, 1),
            _conv(channels, 2 * channels, 3),
            _conv(2 * channels, channels, 1),
            _conv(channels, 2 * channels, 3),
            _conv(2 * channels, channels, 1),
        )
        self.tip = _conv(channels, 2 * channels, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        route = self.convs(x)
        return route, self.tip(route)


def _conv(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
    )


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
        # [h * w, 2] x, y in cells, again for each anchor, and then in px.
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
    best = _overlap(sides, anchors).argmax(1)  # [n]; shape alone decides, so also the level
    cells = (
        (boxes[:, :2] + boxes[:, 2:])
        / 2
        / boxes.new_tensor(STRIDES)[best // ANCHORS_PER_CELL, None]
    )
    # cells: [n, 2], the centres in cells of the map that each one's anchor lies on.
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
    # Predictions lie by level, anchor, row, column (see `Grid`): where each level begins.
    starts = torch.tensor([0, counts[0], counts[0] + counts[1]], device=best.device)
    # A centre on the right or lower edge lies in the last cell.
    corners = torch.minimum(cells.long().clamp(min=0), torch.stack([w, h], dim=1) - 1)
    return starts[level] + (anchor * h + corners[:, 1]) * w + corners[:, 0], corners
