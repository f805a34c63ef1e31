"""How much each anchor, proposal or query weighs in a loss (section 3.3).

Of 100,000 anchors of an image all but some hundred are background that both views are sure of. In
their mean these decide: each has nearly no gradient, all together have most of it. Harmonising
(Gradient Harmonized Detector, arXiv:1811.05181) counts how many anchors have a like gradient norm,
and divides each one's loss by that count: a bin of the histogram then weighs as much as any other,
whether it holds a million sure anchors or three that the views disagree on. So the gradient that
comes from a range of norms grows in proportion to the norm, and what may be an object is found
without a threshold that says so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from downstream.detection.heads.detector import divisor, mean_count


@torch.no_grad()
def even(counted: Tensor, training: bool) -> Tensor:
    """Weights float32 [b, n] of the mean over all that is `counted`, bool [b, n], in the batch.

    Args:
        training: the batch is that of all processes.
    """
    counted = counted.float()
    return counted / divisor(counted.sum(), training)


@torch.no_grad()
def harmonised(gradients: Tensor, counted: Tensor, bins: int, training: bool) -> Tensor:
    """Weights float32 [b, n] of equation 5: 1 / (M R_idx(g)), where R_j is how many that are
    counted have their gradient in bin j, in the batch of all processes.

    Its sum is the mean over M bins of the mean loss in each, 0 in an empty one.

    Args:
        gradients: float32 [b, n] from 0 to 1.
        counted: bool [b, n].
        bins: M.
        training: as of `even`.
    """
    index = (gradients.nan_to_num() * bins).long().clamp(0, bins - 1)  # 1 is of the last bin
    histogram = gradients.new_zeros(bins)
    histogram = histogram.index_add(0, index.flatten(), counted.flatten().float())
    # Whole numbers, so that the order of adding does not matter.
    return torch.where(counted, 1 / (bins * mean_count(histogram, training)[index]), 0.0)


def weighted(losses: Tensor, weights: Tensor, training: bool) -> Tensor:
    """Losses [b, n] summed by weights [b, n] -> float32 [b], whose mean is the batch's sum.

    With weights that are divided by the mean of what processes counted, the mean over their images
    is the sum over all of them divided by what is counted in all, also where one of them could read
    fewer images.

    Args:
        training: as of `even`.
    """
    images = mean_count(losses.new_tensor(float(len(losses))), training)
    return images * (losses * weights).sum(1)
