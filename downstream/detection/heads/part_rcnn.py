"""Keypoint and Mask R-CNN (arXiv:1703.06870): Faster R-CNN, and a head that looks into each box,
torchvision's (keypoint_rcnn.py, mask_rcnn.py, roi_heads.py; BSD-3-Clause) over our backbone.

Coordinates are continuous px: the centre of pixel i lies at i + .5. In the frame of a box of m x m
cells, the centre of cell (row r, column c) lies at x1 + (c + .5) / m w, y1 + (r + .5) / m h.
torchvision's `keypoints_to_heatmap` (cell = floor((x - x1) / w m)) and `heatmaps_to_keypoints` (the
map enlarged to whole px of the box, the centre of the highest) agree with both. What differs:

- A keypoint's score is the largest probability of its cells, from 0 to 1; torchvision's is a logit.
- The masks that are learned are sampled at the cells of that frame; torchvision samples half a
  pixel to the right and below (`roi_align` without `aligned`).
- Losses are those of each image: the sum over its keypoints that count, or its proposals, over the
  number of those in the batch (of all processes, their mean), times the images. Where nothing
  counts they are 0, and so are the gradients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints, keypoints_to_heatmap
from torchvision.ops import roi_align

from downstream.backbone.backbone import Backbone
from downstream.detection.heads.detector import Detections, by_image, divisor, images_of
from downstream.detection.heads.faster_rcnn import FasterRCNN, Learned, Shapes, box_pool
from downstream.detection.heads.torchvision_heads import Maps, Targets, listed_images, pyramid_maps
from ssld.common.errors import InputError

LEAST_LOG = -100.0
"""Below the logarithm of any float32, so that a probability of 0 can be told, too."""


class PartRCNN(FasterRCNN, ABC):
    """Faster R-CNN with a head that sees 14 x 14 cells of each box that is found.

    Args:
        head, predictor: [boxes, channels, 14, 14] -> logits [boxes, maps, m, m].
        options: of FasterRCNN.
    """

    def __init__(
        self, backbone: Backbone, num_classes: int, head: nn.Module, predictor: nn.Module,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(backbone, num_classes, **options)
        self.part_pool = box_pool(14)
        self.part_head, self.part_predictor = head, predictor

    @torch.no_grad()
    def parts(self, images: Tensor, sizes: Tensor, found: list[Detections]) -> list[Tensor]:
        """See `downstream/detection/networks.py`."""
        shapes = listed_images(images, sizes).image_sizes
        return self._parts(pyramid_maps(self, images), shapes, found)

    @abstractmethod
    def finish(self, found: Detections, parts: Tensor) -> Detections:
        """See `downstream/detection/networks.py`."""

    @torch.no_grad()
    def find(self, images: Tensor, sizes: Tensor) -> tuple[list[Detections], list[Tensor]]:
        """What `forward` finds and its `parts`, in one pass through the backbone."""
        listed, maps = listed_images(images, sizes), pyramid_maps(self, images)
        self.rpn.train(False)
        proposals, _ = self.rpn(listed, maps)
        return self._find_parts(maps, proposals, listed.image_sizes)

    def _find(self, maps: Maps, proposals: list[Tensor], shapes: Shapes) -> list[Detections]:
        return self._find_parts(maps, proposals, shapes)[0]

    def _find_parts(
        self, maps: Maps, proposals: list[Tensor], shapes: Shapes
    ) -> tuple[list[Detections], list[Tensor]]:
        found = super()._find(maps, proposals, shapes)
        parts = self._parts(maps, shapes, found)
        return [self.finish(*one) for one in zip(found, parts, strict=True)], parts

    def _parts(self, maps: Maps, shapes: Shapes, found: list[Detections]) -> list[Tensor]:
        boxes = [x["boxes"] for x in found]
        logits = self._of_classes(self._logits(maps, boxes, shapes), [x["labels"] for x in found])
        return list(logits.split([x.shape[0] for x in boxes]))  # `len` would be fixed in a trace

    def _of_classes(self, logits: Tensor, labels: list[Tensor]) -> Tensor:
        """Those of each box's class, where they differ by class."""
        return logits

    def _logits(self, maps: Maps, boxes: list[Tensor], shapes: Shapes) -> Tensor:
        """float32 [boxes of all images, maps, m, m]."""
        pooled = self.part_pool(maps, boxes, shapes)
        return self.part_predictor(self.part_head(pooled)).float()


class KeypointRCNN(PartRCNN):
    """Keypoint R-CNN: of each keypoint the one cell of 56 x 56 in the box where it is.

    Keypoints outside of a proposal, and those of visibility 0, are not learned from.

    Args:
        backbone, num_classes, options: of FasterRCNN.
        num_keypoints: of every object.
        keypoint_channels: width of each 3x3 convolution before the heat maps; fewer and less for
            runs on a CPU.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        num_keypoints: int,
        *,
        keypoint_channels: Sequence[int] = (512,) * 8,
        channels: int = 256,
        **options: Any,
    ) -> None:
        _check_widths("keypoint_channels", keypoint_channels)
        head = KeypointRCNNHeads(channels, keypoint_channels)
        predictor = KeypointRCNNPredictor(keypoint_channels[-1], num_keypoints)
        super().__init__(backbone, num_classes, head, predictor, channels=channels, **options)

    def finish(self, found: Detections, parts: Tensor) -> Detections:
        """`found` with keypoints where the heat maps, enlarged to the box (bicubic), are highest.

        Args:
            parts: float32 [k, K, m, m], logits, or logarithms of probabilities.
        """
        maps = parts - parts.logsumexp((2, 3), keepdim=True)  # of no box, too, in an ONNX file
        scores = maps.amax((2, 3)).exp()  # [k, K]
        # [k, K, 2] px
        places = heatmaps_to_keypoints(maps.clamp(min=LEAST_LOG), found["boxes"])[0][..., :2]
        return {**found, "keypoints": torch.cat([places, scores.unsqueeze(2)], dim=2)}

    def _part_losses(
        self, maps: Maps, shapes: Shapes, learned: Learned, targets: Targets
    ) -> dict[str, Tensor]:
        logits = self._logits(maps, learned.boxes, shapes)  # [p, K, m, m]
        wanted = [logits.new_zeros(0, logits.shape[1], 3)]  # images without objects need not say
        for target, objects in zip(targets, learned.objects, strict=True):
            if len(objects):
                wanted.append(target["keypoints"].float()[objects])
        boxes = torch.cat(learned.boxes)
        cells, counted = keypoints_to_heatmap(torch.cat(wanted), boxes, logits.shape[-1])  # [p, K]
        rows = torch.where(counted.flatten())[0]
        losses = F.cross_entropy(
            logits.flatten(2).flatten(0, 1)[rows], cells.flatten()[rows], reduction="none"
        )
        images = images_of(learned.boxes)[rows // logits.shape[1]]
        count = divisor(counted.sum(), self.training)
        return {"keypoints": by_image(losses, images, len(targets)) * (len(targets) / count)}


class MaskRCNN(PartRCNN):
    """Mask R-CNN: in each box 28 x 28 cells that are of the object or not, for each class.

    Args:
        backbone, num_classes, options: of FasterRCNN.
        mask_channels: width of each 3x3 convolution before the masks; fewer and less for runs on a
            CPU.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        mask_channels: Sequence[int] = (256,) * 4,
        channels: int = 256,
        **options: Any,
    ) -> None:
        _check_widths("mask_channels", mask_channels)
        head = MaskRCNNHeads(channels, list(mask_channels), dilation=1)
        predictor = MaskRCNNPredictor(mask_channels[-1], mask_channels[-1], num_classes)
        super().__init__(backbone, num_classes, head, predictor, channels=channels, **options)

    def finish(self, found: Detections, parts: Tensor) -> Detections:
        """`found` with masks.

        Args:
            parts: float32 [k, m, m], logits.
        """
        return {**found, "masks": parts.sigmoid()}

    def _of_classes(self, logits: Tensor, labels: list[Tensor]) -> Tensor:
        rows = torch.cat(labels).view(-1, 1, 1, 1).expand(-1, 1, *logits.shape[2:])
        return logits.gather(1, rows)[:, 0]  # [boxes, m, m]

    def _part_losses(
        self, maps: Maps, shapes: Shapes, learned: Learned, targets: Targets
    ) -> dict[str, Tensor]:
        pairs = list(zip(targets, learned.objects, strict=True))
        labels = [t["labels"][objects] for t, objects in pairs]
        logits = self._of_classes(self._logits(maps, learned.boxes, shapes), labels)  # [p, m, m]
        wanted = [logits[:0].detach()]  # images without objects need not have masks
        for (target, objects), boxes in zip(pairs, learned.boxes, strict=True):
            if len(objects):
                wanted.append(masks_in_boxes(target["masks"], objects, boxes, logits.shape[-1]))
        losses = F.binary_cross_entropy_with_logits(logits, torch.cat(wanted), reduction="none")
        sums = by_image(losses.mean((1, 2)), images_of(learned.boxes), len(targets))
        count = divisor(torch.tensor(len(losses), device=logits.device), self.training)
        return {"masks": sums * (len(targets) / count)}


def masks_in_boxes(masks: Tensor, objects: Tensor, boxes: Tensor, cells: int) -> Tensor:
    """The share of each cell that is of the object, float32 [p, cells, cells].

    Args:
        masks: uint8 [n, h, w].
        objects: int64 [p], which mask.
        boxes: float32 [p, 4] xyxy px.
    """
    used, places = objects.unique(return_inverse=True)  # only these in four bytes per pixel
    rows = torch.cat([places[:, None].to(boxes), boxes], dim=1)
    return roi_align(masks[used, None].to(boxes), rows, cells, aligned=True)[:, 0]


def _check_widths(name: str, widths: Sequence[int]) -> None:
    right = isinstance(widths, (list, tuple)) and all(type(x) is int and x > 0 for x in widths)
    if not right or not widths:
        raise InputError(f"{name} is {widths!r}: give the width of each convolution, [64, 64]")
