"""From the boxes of several views of an image, or of several detectors, to those of the image.

All are of one class at a time, compute in float64 whatever comes in, and leave ties to the order in
which boxes come. Sources:

- NMS: greedy, as in torchvision's `ops.nms` (BSD-3-Clause).
- Box voting: Gidaris and Komodakis 2015 (arXiv:1505.01749), section 3; here as `box_voting` of
  facebookresearch/Detectron `utils/boxes.py` (Apache-2.0) with scoring method ID.
- Soft-NMS: Bodla et al. 2017 (arXiv:1704.04503), equation 4, the Gaussian; code
  bharatsingh430/soft-nms `lib/nms/cpu_nms.pyx` (MIT). It, too, keeps nothing below `LEAST_SCORE`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou
from torchvision.ops import nms as nms_of_class

from downstream.detection.config import BoxTestConfig
from downstream.detection.heads.detector import MAX_DETECTIONS, Detections

LEAST_SCORE = 0.001
"""What Soft-NMS has lowered below is no detection (soft-nms `lib/fast_rcnn/nms_wrapper.py`)."""
KEYS = ("boxes", "scores", "labels")


def merge(views: Sequence[Detections], test: BoxTestConfig) -> Detections:
    """One list of boxes out of several, each in px of the image; as `test.merge` says.

    Returns:
        as of a detector, on the device of `views`: best first, at most `MAX_DETECTIONS`, which are
        chosen before they are voted on.
    """
    # On the CPU: a few hundred boxes and a loop, each step of which a GPU would wait for.
    union = {key: torch.cat([view[key].cpu() for view in views]) for key in KEYS}
    if test.merge == "soft_nms":
        merged = soft_nms(union, test.soft_nms_sigma)
    else:
        kept = nms(union, test.nms_iou)[:MAX_DETECTIONS]
        merged = {key: union[key][kept] for key in KEYS}
        if test.merge == "vote":
            merged["boxes"] = box_voting(union, kept, test.vote_iou)
    return {key: merged[key][:MAX_DETECTIONS].to(views[0][key]) for key in KEYS}


def nms(found: Detections, iou: float) -> Tensor:
    """Of boxes of a class that overlap by more than `iou`, the best.

    Returns:
        int64 [k]: their places in `found`, best first.
    """
    boxes, scores = found["boxes"].double(), found["scores"].double()
    kept = [torch.zeros(0, dtype=torch.int64, device=scores.device)]
    for label in found["labels"].unique():
        places = (found["labels"] == label).nonzero()[:, 0]
        kept.append(places[nms_of_class(boxes[places], scores[places], iou)])
    chosen = torch.cat(kept).sort()[0]
    return chosen[scores[chosen].sort(descending=True, stable=True)[1]]


def box_voting(found: Detections, kept: Tensor, iou: float) -> Tensor:
    """Each kept box as the mean of all boxes of its class that overlap it by `iou` or more, itself
    among them, weighted by their scores.

    Args:
        kept: int64 [k], places in `found`, which keep their scores.

    Returns:
        float64 [k, 4] xyxy px.
    """
    boxes, scores, labels = found["boxes"].double(), found["scores"].double(), found["labels"]
    votes = (box_iou(boxes[kept], boxes) >= iou) & (labels[kept, None] == labels)  # [k, n]
    votes[torch.arange(len(kept)), kept] = True  # a box without area overlaps nothing
    weights = votes * scores
    total = weights.sum(1, keepdim=True)
    return torch.where(total > 0, weights @ boxes / total, boxes[kept])


def soft_nms(found: Detections, sigma: float) -> Detections:
    """The best box lowers the scores of those of its class by exp(-IoU^2 / sigma), then the best of
    the others does, and so on.

    Returns:
        the `MAX_DETECTIONS` best by their lowered scores, float64, best first.
    """
    boxes, labels = found["boxes"].double(), found["labels"]
    scores, kept, lowered = found["scores"].double(), [], []
    for _ in range(min(MAX_DETECTIONS, len(scores))):
        best = int(scores.argmax())
        if scores[best] < LEAST_SCORE:
            break
        kept.append(best)
        lowered.append(float(scores[best]))
        overlaps = box_iou(boxes[best : best + 1], boxes)[0].nan_to_num(0)  # 0 / 0: no area
        factors = (-(overlaps**2) / sigma).exp()
        scores = torch.where(labels == labels[best], scores * factors, scores)
        scores[best] = -1  # it is taken
    return {"boxes": boxes[kept], "scores": scores.new_tensor(lowered), "labels": labels[kept]}
