"""Faster R-CNN: torchvision's RPN, box head, losses and decoding over our backbone.

Every constant is torchvision's unless an argument says otherwise (`torchvision/models/detection`:
faster_rcnn.py, rpn.py, roi_heads.py; BSD-3-Clause). What differs, and why: see also
`torchvision_heads.py`, of which image, anchor and precision are the same here, and

- RoIAlign's scales are set, not inferred: torchvision infers them once, from the first batch,
  as map / picture, and a picture of 100 px padded to 160 would halve every coordinate for good.
- Losses are those of each image: the sum over its anchors or proposals, over what torchvision
  divides the batch's by, times the images; so their mean is torchvision's. They are of boxes that
  are drawn in each process.
- Without any proposal and object the losses of the box head are 0, not NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import (
    RegionProposalNetwork,
    RPNHead,
    concat_box_prediction_layers,
)
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import LevelMapper

from downstream.backbone.backbone import Backbone
from downstream.detection.heads.detector import (
    MAX_DETECTIONS,
    Detections,
    by_image,
    images_of,
    require_strides,
)
from downstream.detection.heads.torchvision_heads import (
    ASPECT_RATIOS,
    COCO_ANCHORS,
    Anchors,
    Maps,
    Raw,
    Targets,
    check_anchors,
    listed_images,
    pyramid_maps,
)

STRIDES = (4, 8, 16, 32)
BETA = 1 / 9
"""Where the smooth L1 loss of boxes becomes linear (rpn.py, roi_heads.py)."""
Shapes = list[tuple[int, int]]


@dataclass(frozen=True)
class Learned:
    """The proposals of a batch that learn an object."""

    boxes: list[Tensor]
    """Per image float32 [p, 4] xyxy px."""
    objects: list[Tensor]
    """Per image int64 [p]: the number of the object in its targets."""


class FasterRCNN(nn.Module):
    """Faster R-CNN with a feature pyramid (arXiv:1506.01497, 1612.03144) on strides 4 to 32 + pool.

    Which anchors and proposals are sampled for the losses is drawn from torch's global generator.

    Args:
        backbone: gives maps of strides 4, 8, 16, 32.
        num_classes: without background.
        anchor_sizes: side in px for each of the five levels. The default is for images of 800 px;
            on smaller ones objects are smaller, and those below about 20 px would match nothing:
            scale the sizes with the image (320 px: 13, 26, 51, 102, 205).
        channels, head_channels: width of the pyramid, and of the box head; less for runs on a CPU.
        rois_per_image: proposals per image that the box head is trained on.
        score_threshold: detections below are dropped.
        nms_iou: of two boxes of a class that overlap more, the worse one is dropped.
    """

    stride = 32

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        anchor_sizes: Sequence[float] = COCO_ANCHORS,
        channels: int = 256,
        head_channels: int = 1024,
        rois_per_image: int = 512,
        score_threshold: float = 0.05,
        nms_iou: float = 0.5,
    ) -> None:
        super().__init__()
        require_strides(backbone, STRIDES)
        check_anchors(anchor_sizes)
        self.channels = channels
        self.rpn = _RPN(
            Anchors([(s,) for s in anchor_sizes], ASPECT_RATIOS, (*STRIDES, 64)),
            _Float32RPNHead(channels, len(ASPECT_RATIOS)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 2000, "testing": 1000},
            post_nms_top_n={"training": 2000, "testing": 1000},
            nms_thresh=0.7,
        )
        self.roi_heads = _RoIHeads(
            box_pool(7),
            TwoMLPHead(channels * 7**2, head_channels),
            _Float32Predictor(head_channels, num_classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=rois_per_image,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=score_threshold,
            nms_thresh=nms_iou,
            detections_per_img=MAX_DETECTIONS,
        )
        self.backbone = backbone
        self.pyramid = FeaturePyramidNetwork(list(backbone.channels), channels, LastLevelMaxPool())

    @property
    def score_threshold(self) -> float:
        return self.roi_heads.score_thresh

    @score_threshold.setter
    def score_threshold(self, threshold: float) -> None:
        self.roi_heads.score_thresh = threshold

    def forward(self, images: Tensor, sizes: Tensor, targets: Targets | None = None) -> Any:
        """See `downstream/detection/networks.py`; the losses are classification and boxes of the
        box head, objectness and proposals of the RPN."""
        listed, maps = listed_images(images, sizes), pyramid_maps(self, images)
        # It holds neither batch norm nor dropout: its mode says losses or proposals alone.
        self.rpn.train(targets is not None)
        # First stage: objects of any class against anchors; second: the class, and a better box.
        proposals, first = self.rpn(listed, maps, targets)
        if targets is None:
            return self._find(maps, proposals, listed.image_sizes)
        second, learned = self.roi_heads.losses(maps, proposals, listed.image_sizes, targets)
        third = self._part_losses(maps, listed.image_sizes, learned, targets)
        return {
            **second,
            **third,
            "objectness": first["loss_objectness"],
            "proposals": first["loss_rpn_box_reg"],
        }

    def raw(self, images: Tensor, sizes: Tensor) -> Raw:
        """What the RPN says; see `downstream/detection/networks.py`."""
        maps = pyramid_maps(self, images)
        levels = list(maps.values())
        by_level = self.rpn.head(levels)
        anchors = self.rpn.anchor_generator(listed_images(images, sizes), levels)
        counts = [x[0].numel() for x in by_level[0]]  # one logit an anchor
        logits, offsets = concat_box_prediction_layers(*by_level)  # [anchors of all images, ...]
        batch = len(images)
        return Raw(logits.view(batch, -1, 1), offsets.view(batch, -1, 4), anchors[0], counts, maps)

    @torch.no_grad()
    def propose(self, raw: Raw, sizes: Tensor) -> list[Tensor]:
        """See `downstream/detection/networks.py`."""
        self.rpn.eval()  # as many as are looked at without targets; `forward` sets what it needs
        batch = len(raw.logits)
        boxes = self.rpn.box_coder.decode(raw.offsets.flatten(0, 1), [raw.anchors] * batch)
        shapes = [tuple(x) for x in sizes.tolist()]
        return self.rpn.filter_proposals(
            boxes.view(batch, -1, 4), raw.logits, shapes, raw.levels
        )[0]  # fmt: skip

    def refine(self, maps: Maps, proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
        """See `downstream/detection/networks.py`."""
        return self.roi_heads.say(maps, proposals)

    def _find(self, maps: Maps, proposals: list[Tensor], shapes: Shapes) -> list[Detections]:
        return self.roi_heads.find(maps, proposals, shapes)

    def _part_losses(
        self, maps: Maps, shapes: Shapes, learned: Learned, targets: Targets
    ) -> dict[str, Tensor]:
        """Of what is in the boxes, where a network looks for that."""
        return {}


class _RPN(RegionProposalNetwork):
    """torchvision's, with losses of each image."""

    def compute_loss(
        self,
        objectness: Tensor,
        pred_bbox_deltas: Tensor,
        labels: list[Tensor],
        regression_targets: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        batch, images = len(labels), images_of(labels)
        positive, negative = map(torch.cat, self.fg_bg_sampler(labels))  # [anchors of all images]
        learned = torch.where(positive)[0]
        sampled = torch.cat([learned, torch.where(negative)[0]])
        boxes = _box_losses(
            pred_bbox_deltas[learned], torch.cat(regression_targets)[learned]
        )  # [positive ones]
        wanted = torch.cat(labels)[sampled]
        classes = F.binary_cross_entropy_with_logits(
            objectness.flatten()[sampled], wanted, reduction="none"
        )
        scale = batch / max(1, len(sampled))
        return (
            by_image(classes, images[sampled], batch) * scale,
            by_image(boxes, images[learned], batch) * scale,
        )


class _RoIHeads(RoIHeads):
    """torchvision's box head, with losses of each image and class numbers from 0."""

    def losses(
        self, maps: Maps, proposals: list[Tensor], shapes: Shapes, targets: Targets
    ) -> tuple[dict[str, Tensor], Learned]:
        """Losses {term: [b]}, and which of the proposals that were drawn learn an object."""
        shifted = [{**t, "labels": t["labels"] + 1} for t in targets]  # 0 is the background
        proposals, objects, labels, wanted = self.select_training_samples(proposals, shifted)
        scores, deltas = self._look(maps, proposals, shapes)
        batch, images, classes = len(targets), images_of(labels), torch.cat(labels)
        rows = torch.where(classes > 0)[0]
        of_class = deltas.view(*scores.shape, 4)[rows, classes[rows]]
        boxes = _box_losses(of_class, torch.cat(wanted)[rows])
        entropies = F.cross_entropy(scores, classes, reduction="none")
        scale = batch / max(1, len(classes))
        positive = [torch.where(x > 0)[0] for x in labels]
        return {
            "classification": by_image(entropies, images, batch) * scale,
            "boxes": by_image(boxes, images[rows], batch) * scale,
        }, Learned(
            [x[at] for x, at in zip(proposals, positive, strict=True)],
            [x[at] for x, at in zip(objects, positive, strict=True)],
        )

    def find(self, maps: Maps, proposals: list[Tensor], shapes: Shapes) -> list[Detections]:
        """As of a detector without targets."""
        looked = self._look(maps, proposals, shapes)
        found = self.postprocess_detections(*looked, proposals, shapes)
        return [
            {"boxes": boxes, "scores": scores, "labels": labels - 1}
            for boxes, scores, labels in zip(*found, strict=True)
        ]

    def say(self, maps: Maps, proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [n, classes + 1] of all proposals, and offsets [n, classes, 4] of every class but
        the background, which has no box."""
        scores, deltas = self._look(maps, proposals, [])  # shapes would only set the pool's scales
        return scores, deltas.view(*scores.shape, 4)[:, 1:]

    def _look(self, maps: Maps, proposals: list[Tensor], shapes: Shapes) -> tuple[Tensor, Tensor]:
        pooled = self.box_roi_pool(maps, proposals, shapes)
        return self.box_predictor(self.box_head(pooled))


def box_pool(output_size: int) -> MultiScaleRoIAlign:
    """Of maps of strides 4 to 32, [boxes, channels, output_size, output_size]; a box's side says
    of which map (FPN, equation 1)."""
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size, sampling_ratio=2)
    pool.scales = [1 / stride for stride in STRIDES]
    pool.map_levels = LevelMapper(2, 5)  # log2 of the strides
    return pool


def _box_losses(deltas: Tensor, wanted: Tensor) -> Tensor:
    """[n, 4] each -> [n]."""
    return F.smooth_l1_loss(deltas, wanted, beta=BETA, reduction="none").sum(1)


class _Float32RPNHead(RPNHead):
    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, deltas = super().forward(x)
        return [o.float() for o in objectness], [d.float() for d in deltas]


class _Float32Predictor(FastRCNNPredictor):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = super().forward(x)
        return scores.float(), deltas.float()
