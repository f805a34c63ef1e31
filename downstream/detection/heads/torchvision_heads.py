"""RetinaNet and FCOS: torchvision's heads, losses and decoding over our backbone.

Every constant is torchvision's unless an argument says otherwise (`torchvision/models/detection`:
retinanet.py, fcos.py; BSD-3-Clause): RetinaNet matches at IoU .5/.4, focal loss
.25/2, L1 boxes, 3 octaves per level. What differs, and why:

- torchvision's `GeneralizedRCNNTransform` always resizes, so pyramid and heads are called
  directly: what the views made is what the network sees.
- Anchors lie on the true strides. torchvision divides the padded size by the map's size instead,
  and P6 of a 96 px image then has a stride of 48: anchors drift with the padding.
- Whatever leaves a head is float32, and so are anchors, losses and decoding: bfloat16, as autocast
  would have it, rounds 300 px to a multiple of 2.
- Losses are those of each image; their mean is torchvision's.
- FCOS divides its losses by the cells of the whole batch that learn a box, not of each process's
  part. (RetinaNet's are by image.)
- At most 100 boxes (what COCO evaluates), class numbers from 0.
- RetinaNet has Soft-NMS as a choice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS as TorchvisionFCOS
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from downstream.backbone.backbone import Backbone
from downstream.detection.heads.detector import MAX_DETECTIONS, Detections, divisor, require_strides
from downstream.detection.merging import soft_nms
from ssld.common.errors import InputError

Targets = list[dict[str, Tensor]]
Maps = OrderedDict[str, Tensor]

COCO_ANCHORS = (32, 64, 128, 256, 512)
"""Side in px of the anchors of the five levels, for images of about 800 px (FPN, section 4.1;
RetinaNet, section 4)."""

ASPECT_RATIOS = (0.5, 1.0, 2.0)
ANCHORS_PER_CELL = 3 * len(ASPECT_RATIOS)
"""Of RetinaNet: three sizes a level, a third of an octave apart."""
NO_NMS, ALL = 2.0, 100_000
"""An overlap and a number of boxes that are never reached: each level has its 1000 best."""


@dataclass(frozen=True)
class Raw:
    """What a network says of every anchor of a batch, before it decides on any."""

    logits: Tensor
    """float32 [b, anchors of all levels, classes], each class by itself (sigmoid)."""
    offsets: Tensor
    """float32 [b, anchors, 4]: from an anchor's centre to the box's, in widths and heights of the
    anchor, and the logarithms of the box's width and height over the anchor's."""
    anchors: Tensor
    """float32 [anchors, 4] xyxy px, the finest level first; the centre is where the cell begins."""
    levels: list[int]
    """Anchors of each level."""
    maps: Maps
    """The pyramid that it is said from."""


class Anchors(AnchorGenerator):
    """torchvision's anchors, float32 and on the true strides of the levels, whatever the padding.

    Args:
        sizes: per level the sides of its anchors in px.
        ratios: height / width of the anchors.
        strides: per level px from one cell to the next; a 3x3 convolution of stride 2 and padding 1
            doubles it exactly, also where it rounds the map's size up.
    """

    def __init__(
        self, sizes: Sequence[Sequence[float]], ratios: Sequence[float], strides: Sequence[int]
    ) -> None:
        super().__init__(tuple(map(tuple, sizes)), (tuple(ratios),) * len(sizes))
        self.strides = tuple(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        device = feature_maps[0].device
        self.set_cell_anchors(torch.float32, device)
        grids = [[int(n) for n in x.shape[-2:]] for x in feature_maps]  # (h, w) of each level
        strides = [[torch.tensor(s, device=device)] * 2 for s in self.strides]
        anchors = torch.cat(self.grid_anchors(grids, strides))  # [anchors of all levels, 4] px
        return [anchors] * len(image_list.image_sizes)


class _Channels(nn.Module):
    """What torchvision's constructors ask of a backbone."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.out_channels = out_channels


class _Thresholded(nn.Module):
    """torchvision's word for it is `score_thresh`."""

    score_thresh: float

    @property
    def score_threshold(self) -> float:
        return self.score_thresh

    @score_threshold.setter
    def score_threshold(self, threshold: float) -> None:
        self.score_thresh = threshold


class RetinaNet(TorchvisionRetinaNet, _Thresholded):
    """RetinaNet (arXiv:1708.02002) on strides 8 to 32 and P6, P7 from P5.

    Args:
        backbone: gives maps of strides 8, 16, 32.
        num_classes: without background.
        pyramid, head: other than torchvision's; the pyramid takes the backbone's maps, by name, and
            gives those of strides 8 to 128.
        anchor_sizes: side in px of the smallest of three octaves, for each of the five levels;
            when to change it: see FasterRCNN.
        channels: width of pyramid and heads; less for runs on a CPU.
        score_threshold: detections below are dropped.
        nms_iou: of two boxes of a class that overlap more, the worse one is dropped.
        soft_nms_sigma: then its score is multiplied by exp(-IoU^2 / sigma) instead, whatever the
            overlap (Soft-NMS, Bodla et al. 2017: .5; Zoph et al. 2020 with SpineNet: .3).
    """

    stride = 32
    backbone_strides: tuple[int, ...] = (8, 16, 32)

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        pyramid: nn.Module | None = None,
        head: RetinaNetHead | None = None,
        *,
        anchor_sizes: Sequence[float] = COCO_ANCHORS,
        channels: int = 256,
        score_threshold: float = 0.05,
        nms_iou: float = 0.5,
        soft_nms_sigma: float | None = None,
    ) -> None:
        require_strides(backbone, self.backbone_strides)
        check_anchors(anchor_sizes)
        octaves = [[int(size * 2 ** (i / 3)) for i in range(3)] for size in anchor_sizes]
        super().__init__(
            _Channels(channels),
            num_classes,
            anchor_generator=Anchors(octaves, ASPECT_RATIOS, (8, 16, 32, 64, 128)),
            head=head or RetinaNetHead(channels, ANCHORS_PER_CELL, num_classes),
            score_thresh=score_threshold,
            nms_thresh=nms_iou,
            detections_per_img=MAX_DETECTIONS,
        )
        self.soft_nms_sigma = soft_nms_sigma
        if soft_nms_sigma is not None:
            if soft_nms_sigma <= 0:
                raise InputError(f"soft_nms_sigma is {soft_nms_sigma}: give a number above 0")
            self.nms_thresh, self.detections_per_img = NO_NMS, ALL
        del self.transform
        self.backbone = backbone
        self.pyramid = pyramid or _pyramid_to_p7(backbone, channels)

    def forward(self, images: Tensor, sizes: Tensor, targets: Targets | None = None) -> Any:
        """See `downstream/detection/networks.py`; the losses are classification and boxes."""
        outputs, anchors, cells = _dense(self, pyramid_maps(self, images), images, sizes)
        if targets is None:
            return _decode(self, outputs, anchors, cells, sizes)
        with torch.autocast(images.device.type, enabled=False):
            ones = zip(targets, _by_image(outputs), anchors, strict=True)
            losses = [self.compute_loss([target], one, [a]) for target, one, a in ones]
        terms = {"classification": "classification", "boxes": "bbox_regression"}
        return {ours: torch.stack([x[name] for x in losses]) for ours, name in terms.items()}

    def raw(self, images: Tensor, sizes: Tensor) -> Raw:
        """See `downstream/detection/networks.py`."""
        maps = pyramid_maps(self, images)
        outputs, anchors, cells = _dense(self, maps, images, sizes)
        levels = [n * self.anchor_generator.num_anchors_per_location()[0] for n in cells]
        return Raw(outputs["cls_logits"], outputs["bbox_regression"], anchors[0], levels, maps)

    def postprocess_detections(self, *outputs: Any) -> list[Detections]:
        """As torchvision's; with `soft_nms_sigma` of all boxes that are no worse than the
        threshold."""
        found: list[Detections] = super().postprocess_detections(*outputs)
        if self.soft_nms_sigma is None:
            return found
        return [_softened(one, self.soft_nms_sigma) for one in found]


def _softened(found: Detections, sigma: float) -> Detections:
    # On the CPU: a loop, each step of which a GPU would wait for.
    soft = soft_nms({key: x.cpu() for key, x in found.items()}, sigma)
    return {key: x.to(found[key]) for key, x in soft.items()}


class _SharedFCOSHead(FCOSHead):
    """Has losses of each image, divided by what is in the batch of all processes."""

    def compute_loss(
        self,
        targets: Targets,
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        images = zip(targets, _by_image(head_outputs), anchors, matched_idxs, strict=True)
        loss = super().compute_loss
        losses = [loss([target], one, [a], [matched]) for target, one, a, matched in images]
        # matched_idxs: int64 [anchors] of each image, the box that a cell learns, below 0 for none.
        # Each image's losses were divided by its own number of those, 1 at least.
        counts = torch.stack([(x >= 0).sum() for x in matched_idxs])  # [b]
        share = len(counts) * counts.clamp(min=1) / divisor(counts.sum(), self.training)
        return {name: torch.stack([x[name] for x in losses]) * share for name in losses[0]}


class FCOS(TorchvisionFCOS, _Thresholded):
    """FCOS (arXiv:1904.01355) on strides 8 to 32 and P6, P7 from P5. It has no anchors: a level
    finds the boxes whose farthest side is 4 to 8 strides from the point.

    Args:
        backbone: gives maps of strides 8, 16, 32.
        num_classes: without background.
        channels: width of pyramid and heads, 64 or another multiple of 32 (their norms have 32
            groups, and one number has no variance); less for runs on a CPU.
        score_threshold: detections below are dropped; the score is the square root of probability
            times centerness, so .2 is about the paper's .05.
        nms_iou: of two boxes of a class that overlap more, the worse one is dropped.
    """

    stride = 32

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        channels: int = 256,
        score_threshold: float = 0.2,
        nms_iou: float = 0.6,
    ) -> None:
        require_strides(backbone, (8, 16, 32))
        if channels % 32 or channels < 64:
            raise InputError(f"channels of FCOS is {channels}: give 64, 96, ... 256")
        strides = (8, 16, 32, 64, 128)
        super().__init__(
            _Channels(channels),
            num_classes,
            # One square "anchor" a cell: torchvision's name for the point and its level's stride.
            anchor_generator=Anchors([(s,) for s in strides], (1.0,), strides),
            head=_SharedFCOSHead(channels, 1, num_classes),
            score_thresh=score_threshold,
            nms_thresh=nms_iou,
            detections_per_img=MAX_DETECTIONS,
        )
        del self.transform
        self.backbone = backbone
        self.pyramid = _pyramid_to_p7(backbone, channels)

    def forward(self, images: Tensor, sizes: Tensor, targets: Targets | None = None) -> Any:
        """See `downstream/detection/networks.py`; the losses are classification, boxes (GIoU) and
        centerness."""
        outputs, anchors, cells = _dense(self, pyramid_maps(self, images), images, sizes)
        if targets is None:
            return _decode(self, outputs, anchors, cells, sizes)
        with torch.autocast(images.device.type, enabled=False):
            losses = self.compute_loss(targets, outputs, anchors, cells)
        return {
            "classification": losses["classification"],
            "boxes": losses["bbox_regression"],
            "centerness": losses["bbox_ctrness"],
        }


def check_anchors(sizes: Sequence[float]) -> None:
    """Raise InputError unless there is one side in px for each of five levels."""
    if len(sizes) != 5 or min(sizes) <= 0:
        raise InputError(f"anchor_sizes is {list(sizes)}: give five sides in px, one per level")


def _pyramid_to_p7(backbone: Backbone, channels: int) -> FeaturePyramidNetwork:
    extra = LastLevelP6P7(channels, channels)  # both equal: P6 comes from P5
    return FeaturePyramidNetwork(list(backbone.channels), channels, extra)


def listed_images(images: Tensor, sizes: Tensor) -> ImageList:
    """Images [b, 3, H, W] of (h, w) `sizes` [b, 2] as torchvision's heads take them."""
    return ImageList(images, [(int(h), int(w)) for h, w in sizes.tolist()])


def pyramid_maps(network: Any, images: Tensor) -> Maps:
    """The maps of a network's pyramid on its backbone, finest first, named "0", "1", ...; the last
    has a name of torchvision's."""
    maps = network.backbone(images)
    return network.pyramid(OrderedDict((str(i), x) for i, x in enumerate(maps)))


def _dense(
    network: TorchvisionRetinaNet | TorchvisionFCOS, pyramid: Maps, images: Tensor, sizes: Tensor
) -> tuple[dict[str, Tensor], list[Tensor], list[int]]:
    """Head outputs float32 [b, anchors, ...], per image anchors [anchors, 4], cells per level."""
    maps = list(pyramid.values())
    outputs = {name: x.float() for name, x in network.head(maps).items()}
    anchors = network.anchor_generator(listed_images(images, sizes), maps)
    return outputs, anchors, [int(x.shape[2] * x.shape[3]) for x in maps]


def _by_image(outputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Head outputs [b, anchors, ...] -> of each image [1, anchors, ...]."""
    names, images = list(outputs), zip(*(x.split(1) for x in outputs.values()), strict=True)
    return [dict(zip(names, image, strict=True)) for image in images]


def _decode(
    network: TorchvisionRetinaNet | TorchvisionFCOS,
    outputs: dict[str, Tensor],
    anchors: list[Tensor],
    cells: list[int],
    sizes: Tensor,
) -> list[Detections]:
    """torchvision's decoding, which wants everything by level."""
    # [b, anchors of all levels, ...] -> a list of levels, each of cells x per_cell anchors.
    per_cell = network.anchor_generator.num_anchors_per_location()[0]
    counts = [n * per_cell for n in cells]
    levels = {name: list(x.split(counts, dim=1)) for name, x in outputs.items()}
    pictures = [(int(h), int(w)) for h, w in sizes.tolist()]
    with torch.autocast(sizes.device.type, enabled=False):
        return network.postprocess_detections(
            levels, [list(a.split(counts)) for a in anchors], pictures
        )
