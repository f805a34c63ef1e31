"""DETR (arXiv:2005.12872): transformers' encoder, decoder, matcher and losses over our backbone.

The pieces of `transformers/models/detr` are put together here instead of taking its
`DetrForObjectDetection`, which is the same network (a test compares them) but

- replaces every BatchNorm2d of the backbone by a plain frozen one, and timm's `BatchNormAct2d`
  carries the activation: MobileNets and EfficientNets lose all of theirs, silently;
- initialises with N(0, .02), queries included, which are nearly the same then. The reference
  (facebookresearch/detr, models/transformer.py and detr.py; Apache-2.0) takes Xavier's uniform
  for the transformer's matrices and N(0, 1) for the queries;
- with auxiliary losses feeds the normalised output of each decoder layer to the next one; in
  the reference the norm is for the loss only;
- divides the number of boxes by the number of processes twice (accelerate's `reduce` takes the
  mean already), and raises on boxes that are not numbers;
- takes the classes' mean over each process's queries, not over those of the whole batch.

Weights of the reference for the loss (models/detr.py, build): class 1, L1 5, GIoU 2, "no object"
.1, the same for each decoder layer; the matcher's costs are class 1, L1 5, GIoU 2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou
from transformers import DetrConfig
from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss
from transformers.models.detr.modeling_detr import (
    DetrDecoder,
    DetrEncoder,
    DetrMLPPredictionHead,
    DetrSinePositionEmbedding,
)

from downstream.backbone.backbone import Backbone
from downstream.detection.heads.detector import (
    MAX_DETECTIONS,
    Detections,
    by_image,
    clip,
    detections,
    images_of,
    mean_count,
    rescale,
)

Targets = list[dict[str, Tensor]]

NO_OBJECT = 0.1
"""Weight of that class."""


class DETR(nn.Module):
    """A set of boxes from learned queries, without anchors and without non-maximum suppression.

    Args:
        backbone: gives the map of stride 32; of more maps the last one is taken.
        num_classes: without "no object", which is the last class inside.
        num_queries: the most boxes that are found in an image.
        width, layers, heads, ffn_width: of the transformer, `layers` of encoder and decoder each.
        dropout: of the transformer.
        score_threshold: detections below are dropped; the reference drops none.
    """

    stride = 32

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        num_queries: int = 100,
        width: int = 256,
        layers: int = 6,
        heads: int = 8,
        ffn_width: int = 2048,
        dropout: float = 0.1,
        score_threshold: float = 0.0,
    ) -> None:
        super().__init__()
        config = DetrConfig(
            d_model=width,
            encoder_layers=layers,
            decoder_layers=layers,
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            encoder_ffn_dim=ffn_width,
            decoder_ffn_dim=ffn_width,
            dropout=dropout,
        )
        config._attn_implementation = "sdpa"
        self.score_threshold, self.num_queries = score_threshold, num_queries
        self.num_classes = num_classes
        self.backbone = backbone
        self.input_projection = nn.Conv2d(backbone.channels[-1], width, kernel_size=1)
        self.position_embedding = DetrSinePositionEmbedding(width // 2, normalize=True)
        self.query_position_embeddings = nn.Embedding(num_queries, width)
        self.encoder = DetrEncoder(config)
        self.decoder = DetrDecoder(config)
        self.class_labels_classifier = nn.Linear(width, num_classes + 1)
        self.bbox_predictor = DetrMLPPredictionHead(width, width, output_dim=4, num_layers=3)
        matcher = HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
        self.criterion = ImageLoss(matcher, num_classes, eos_coef=NO_OBJECT, losses=[])
        for part in (self.encoder, self.decoder):
            for weight in part.parameters():
                if weight.dim() > 1:
                    nn.init.xavier_uniform_(weight)

    def forward(self, images: Tensor, sizes: Tensor, targets: Targets | None = None) -> Any:
        """See `downstream/detection/networks.py`; the losses are classification, boxes (L1) and
        giou of the last decoder layer, and the sum of all of the other layers as auxiliary."""
        logits, boxes = self._say(self._states(images, sizes))  # [layers, b, queries, ...]
        if targets is None:
            return self._decode(logits[-1], boxes[-1], sizes)
        with torch.autocast(images.device.type, enabled=False):
            return self._losses(logits, boxes, _relative(targets, sizes))

    def queries(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """See `downstream/detection/networks.py`."""
        return self._say(self._states(images, sizes)[-1])

    def _say(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Logits float32 [..., queries, classes + 1], and boxes float32 [..., queries, 4]: cx, cy,
        w, h of the picture = 1."""
        logits = self.class_labels_classifier(states).float()
        return logits, self.bbox_predictor(states).float().sigmoid()

    def _states(self, images: Tensor, sizes: Tensor) -> Tensor:
        """The queries after each decoder layer, [layers, b, queries, width]."""
        deepest = self.backbone(images)[-1]
        inside = _inside(images, sizes, deepest)  # [b, h, w]: what is padding is not attended to
        memory = self.input_projection(deepest).flatten(2).transpose(1, 2)  # [b, cells, width]
        positions = self.position_embedding(deepest.shape, images.device, images.dtype, inside)
        if positions.dim() == 4:  # those of transformers 5.1 to 5.4 are flat
            positions = positions.flatten(2).transpose(1, 2)  # [b, cells, width]
        cells = inside.flatten(1)
        memory = self.encoder(
            memory, attention_mask=cells, spatial_position_embeddings=positions
        ).last_hidden_state
        queries = self.query_position_embeddings.weight.expand(len(images), -1, -1)
        # What is learned are the queries' positions; their content begins as 0 (reference).
        state, states = torch.zeros_like(queries), []
        # Layer by layer instead of `self.decoder(...)`: the reference feeds each layer the state
        # before the norm, which is for the loss only.
        for layer in self.decoder.layers:
            state = layer(
                state,
                None,
                positions,
                queries,
                memory,
                encoder_attention_mask=cells[:, None, None],
            )
            states.append(self.decoder.layernorm(state))  # [b, queries, width]
        return torch.stack(states)

    def _losses(self, logits: Tensor, boxes: Tensor, targets: Targets) -> dict[str, Tensor]:
        count = self._boxes_per_process(targets, boxes)
        if not boxes.isfinite().all():  # the matcher would raise; the loop names the term
            count = torch.full_like(count, torch.nan)
            boxes = boxes.nan_to_num()
        weight = self._class_weight(targets, logits)
        terms = [
            self._layer_losses(*one, targets, count, weight)
            for one in zip(logits, boxes, strict=True)
        ]
        auxiliary = [loss for layer in terms[:-1] for loss in layer.values()]
        return terms[-1] | ({"auxiliary": torch.stack(auxiliary).sum(0)} if auxiliary else {})

    def _layer_losses(
        self, logits: Tensor, boxes: Tensor, targets: Targets, count: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        """Of each image [b]: its sum, over what the batch's is divided by, times the images."""
        batch = len(targets)
        # Each layer is matched anew, one query to a box: per image (queries, boxes).
        pairs = self.criterion.matcher({"logits": logits, "pred_boxes": boxes}, targets)
        pairs = [(at.to(logits.device), box.to(logits.device)) for at, box in pairs]
        places = images_of([at for at, _ in pairs]), torch.cat([at for at, _ in pairs])
        labels, wanted = (
            torch.cat([t[key][box] for t, (_, box) in zip(targets, pairs, strict=True)])
            for key in ("class_labels", "boxes")
        )
        classes = torch.full(logits.shape[:2], self.num_classes, device=logits.device)
        classes[places] = labels
        entropies = F.cross_entropy(
            logits.transpose(1, 2), classes, self.criterion.empty_weight, reduction="none"
        )  # [b, queries]
        off = (boxes[places] - wanted).abs().sum(1)
        overlaps = generalized_box_iou(_corners(boxes[places]), _corners(wanted)).diag()
        return {
            "classification": batch * entropies.sum(1) / weight,
            "boxes": 5 * batch * by_image(off, places[0], batch) / count,
            "giou": 2 * batch * by_image(1 - overlaps, places[0], batch) / count,
        }

    def _class_weight(self, targets: Targets, logits: Tensor) -> Tensor:
        """What the classes' weighted sum over this process's queries is to be divided by for the
        weighted mean over those of the whole batch."""
        _, batch, queries, _ = logits.shape
        # A query without a box weighs NO_OBJECT in the cross-entropy's weighted mean, others 1.
        matched = sum(min(len(t["boxes"]), queries) for t in targets)
        weight = logits.new_tensor(float(matched + NO_OBJECT * (batch * queries - matched)))
        return weight / rescale(weight, self.training)

    def _boxes_per_process(self, targets: Targets, like: Tensor) -> Tensor:
        """Mean over the processes, at least 1: so that two are worth one with twice the batch. In
        eval mode of this one, as then the processes need not have as many batches."""
        count = like.new_tensor(float(sum(len(t["boxes"]) for t in targets)))
        return mean_count(count, self.training).clamp(min=1)

    def _decode(self, logits: Tensor, boxes: Tensor, sizes: Tensor) -> list[Detections]:
        """The best class of each query (models/detr.py, PostProcess), best queries first."""
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)  # [b, queries]
        scores, best = scores.topk(min(MAX_DETECTIONS, scores.shape[1]))
        corners = _corners(boxes) * _whwh(sizes).to(boxes)[:, None]
        # [b, queries, 4] in the order of the scores
        corners = corners.gather(1, best.unsqueeze(2).expand(-1, -1, 4))
        kept = clip(corners, sizes), scores, labels.gather(1, best)
        return detections(*kept, self.score_threshold)


def _corners(boxes: Tensor) -> Tensor:
    return box_convert(boxes, "cxcywh", "xyxy")


def _inside(images: Tensor, sizes: Tensor, deepest: Tensor) -> Tensor:
    """bool [b, h, w]: the cells of the deepest map that begin inside of the picture."""
    height, width = images.shape[-2:]
    rows = torch.arange(deepest.shape[2], device=images.device) * (height / deepest.shape[2])
    columns = torch.arange(deepest.shape[3], device=images.device) * (width / deepest.shape[3])
    sizes = sizes.to(images.device)
    return (rows < sizes[:, :1])[:, :, None] & (columns < sizes[:, 1:])[:, None]


def _whwh(sizes: Tensor) -> Tensor:
    return sizes.flip(1).repeat(1, 2).float()  # [b, 4]


def _relative(targets: Targets, sizes: Tensor) -> Targets:
    scales = _whwh(sizes).to(targets[0]["boxes"].device)
    return [
        {
            "boxes": box_convert(t["boxes"].float(), "xyxy", "cxcywh") / scale,
            "class_labels": t["labels"],
        }
        for t, scale in zip(targets, scales, strict=True)
    ]
