"""YOLOv3: three maps, three anchors per cell, each with a box, an objectness and class scores.

Redmon and Farhadi, YOLOv3: An Incremental Improvement (arXiv 1804.02767). Constants are those of
PaddleDetection's YOLOv3 (Apache-2.0), with which SSLD was evaluated: configs/yolov3/_base_/
yolov3_darknet53.yml, ppdet/modeling/necks/yolo_fpn.py, heads/yolo_head.py, losses/yolo_loss.py and
backbones/darknet.py (`ConvBNLayer`), written anew. YOLOv3-DCNv2 has the 3x3 convolutions of the
backbone's last stage made deformable (`dcn_v2_stages: [5]`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms, box_iou

from downstream.backbone.backbone import Backbone
from downstream.detection.heads.decoding import (
    MAX_DETECTIONS,
    Detections,
    clip,
    require_strides,
)
from downstream.detection.heads.deformable import deform_last_stage
from downstream.detection.heads.yolov3_targets import (
    ANCHORS_PER_CELL,
    STRIDES,
    decode_boxes,
    grid,
    yolov3_targets,
)

IGNORE_IOU = 0.7
"""A prediction without an object that overlaps one more than this is not told that it is wrong
(`ignore_thresh`; the paper's section 2.1 has .5)."""
CANDIDATES_PER_CLASS = 1000
"""Of an image that are looked at for overlaps (`nms_top_k`)."""
LEAKY_SLOPE = 0.1
"""Of the activations (darknet; `F.leaky_relu(out, 0.1)`)."""


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
            With targets "xy", "wh", "objectness" and "classes", float32 scalars, finite also
            without any box: sums over an image, means over the images. Otherwise per image
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
        rank, labels = (best > self.score_threshold).nonzero(as_tuple=True)
        boxes, scores = boxes[places[rank, labels]], best[rank, labels]
        real = (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes, scores, labels = boxes[real], scores[real], labels[real]
        keep = batched_nms(boxes, scores, labels, self.nms_threshold)[:MAX_DETECTIONS]
        return {"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]}


def yolov3_losses(
    outputs: Tensor, maps: list[tuple[int, int]], targets: list[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Sums over each image, means over the images (ppdet/modeling/losses/yolo_loss.py).

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
    own = flat[wanted.places]
    place = (wanted.scales * wanted.weights).unsqueeze(1)
    objectness = flat.new_zeros(b * n).index_fill(0, wanted.places, 1)
    # What finds an object well enough without being its own prediction is neither right nor wrong.
    counts = _unlike_objects(outputs.detach(), maps, targets).view(-1).to(flat)
    counts[wanted.places] = wanted.weights
    losses = {
        "xy": place * _cross_entropy(own[:, :2], wanted.xy),
        "wh": place * (own[:, 2:4] - wanted.wh).abs(),
        "objectness": counts * _cross_entropy(flat[:, 4], objectness),
        "classes": wanted.weights.unsqueeze(1) * _cross_entropy(own[:, 5:], wanted.classes),
    }
    return {name: loss.sum() / b for name, loss in losses.items()}


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
