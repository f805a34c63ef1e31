"""The first training views as each network sees them, for the report."""

from __future__ import annotations

import numpy as np
import torch

from ssld.data.batching import train_batches
from ssld.data.loading import ViewBatches
from ssld.distill.setup import ClassifierRun
from ssld.models.classifier import Classifier
from ssld.report.page import grid

SHOWN = 16


def views_as_seen(run: ClassifierRun, student: Classifier) -> list[tuple[str, np.ndarray]]:
    """(caption, uint8 picture [h, w, 3]) of the same views: raw, then each network's input, whose
    range -2.5..2.5 is shown as black..white, so that a wrong normalisation shows as a tint."""
    batches = train_batches(
        ViewBatches(run.sources, run.view), run.sampler, batch_size=SHOWN, first_step=0, last_step=1
    )
    images = next(iter(batches)).images
    panels = [("views, as drawn", grid(images.numpy()))]
    teachers = list(run.teacher.networks) if run.teacher else []
    for name, network in [("student", student), *(("teacher", t) for t in teachers)]:
        panels.append((f"as the {name} sees them", grid(_seen(network, images))))
    return panels


@torch.no_grad()
def _seen(network: Classifier, images: torch.Tensor) -> np.ndarray:
    device = next(network.parameters()).device
    x = network.preprocess(images.to(device)).permute(0, 2, 3, 1)
    return ((x / 5 + 0.5).clamp(0, 1) * 255).round().byte().cpu().numpy()
