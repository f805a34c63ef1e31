"""Predictions of the second stage on proposals that both views share (sections 3.1 and 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from downstream.detection.heads.torchvision_heads import Maps
from downstream.sed.predictions import Predictions

Proposals = list[Tensor]
"""Per image float32 [n, 4] xyxy px."""
BACKGROUND = 0
"""Among the classes of torchvision's box head."""


def look(network: Any, maps: Maps, sets: Sequence[Proposals]) -> list[Predictions]:
    """What the second stage says of each of several sets of proposals, in one pass: [b, n, ...]
    with n the most proposals of an image, 0 beyond an image's own.

    Args:
        network: has `refine` (`downstream/detection/networks.py`).
        maps: of the view that the proposals' px are of.
    """
    by_image = list(zip(*sets, strict=True))  # per image its proposals of each set
    logits, offsets = network.refine(maps, [torch.cat(x) for x in by_image])
    counts = [len(x) for image in by_image for x in image]
    said, boxes = (
        [pad_sequence(x.split(counts)[i :: len(sets)], batch_first=True) for i in range(len(sets))]
        for x in (logits, offsets)
    )
    return [Predictions(*each, BACKGROUND) for each in zip(said, boxes, strict=True)]


def both(first: Predictions, second: Predictions) -> Predictions:
    """Of the proposals of one set and then of the other."""
    logits = torch.cat([first.logits, second.logits], 1)
    return Predictions(logits, torch.cat([first.boxes, second.boxes], 1), first.background)


def there(first: Proposals, second: Proposals) -> Tensor:
    """bool [b, n + m]: what of `both` is a proposal, not filled up."""
    return torch.cat([_filled(first), _filled(second)], 1)


def _filled(proposals: Proposals) -> Tensor:
    counts = torch.tensor([len(x) for x in proposals], device=proposals[0].device)
    most = max(len(x) for x in proposals)
    return torch.arange(most, device=counts.device) < counts.unsqueeze(1)
