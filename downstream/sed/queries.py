"""Predictions of DETR's queries, matched between two views (section 4.3)."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou

from downstream.sed.predictions import Pair, Predictions

NO_OBJECT = -1
"""Among DETR's classes."""


def matched_pair(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], match_iou: float
) -> Pair:
    """Each query of one view with that of the other that says the most alike.

    A query is bound to no place, so that the one which finds an object may be another one in
    another view. The matching (Hungarian algorithm) minimises the sum over the pairs of

        JS(p1, p2) + lambda L_GIoU(b1, b2),    L_GIoU = 1 - GIoU,

    over all queries, of objects and of none. What is then minimised is not in the paper for DETR;
    here it is equations 2 and 3 of the pairs, with boxes for offsets.

    Args:
        first, second: logits [b, q, classes + 1] and boxes [b, q, 4] cx, cy, w, h of the picture
            = 1.
        match_iou: lambda.
    """
    one, other = (Predictions(*view, NO_OBJECT) for view in (first, second))
    partner = matching(one, other, match_iou).unsqueeze(2)  # [b, q, 1]
    logits, boxes = (x.gather(1, partner.expand_as(x)) for x in second)
    counted = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
    return Pair(one, Predictions(logits, boxes, NO_OBJECT), counted)


@torch.no_grad()
def matching(first: Predictions, second: Predictions, match_iou: float) -> Tensor:
    """int64 [b, q]: the query of `second` for each of `first`."""
    cost = jensen_shannon(first.probabilities, second.probabilities)
    if match_iou:
        corners = zip(
            *(box_convert(x.boxes, "cxcywh", "xyxy") for x in (first, second)), strict=True
        )
        cost = cost + match_iou * (1 - torch.stack([generalized_box_iou(*x) for x in corners]))
    # Of a network that gives no numbers: the loss is none then, and the loop names it.
    costs = cost.nan_to_num().cpu().numpy()
    partners = [torch.from_numpy(linear_sum_assignment(x)[1]) for x in costs]
    return torch.stack(partners).to(cost.device)


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Of all pairs of probabilities [b, q, classes] and [b, r, classes]: [b, q, r] in nats."""
    middle = (first.unsqueeze(2) + second.unsqueeze(1)) / 2
    mean = (_entropy(first).unsqueeze(2) + _entropy(second).unsqueeze(1)) / 2
    return _entropy(middle) - mean


def _entropy(probabilities: Tensor) -> Tensor:
    return torch.special.entr(probabilities).sum(-1)
