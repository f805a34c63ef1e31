"""How long it will take, said before it begins, from a few images of the gallery itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ssld.curate.context import Work
from ssld.curate.near_duplicates.matching import compare
from ssld.curate.near_duplicates.sift import Features, features
from ssld.curate.sets.images import ImageSet
from ssld.curate.sets.index import measure
from ssld.data.decode import Unreadable
from ssld.data.sources import read_address

if TYPE_CHECKING:  # torch takes longer to import than a small gallery to curate without a teacher
    from ssld.curate.select.score import Scorer

SAMPLE = 24
"""Images that are tried."""
CANDIDATES = 15
"""Protected images that one is compared with, about."""


def project(work: Work, sets: dict[str, ImageSet], scorer: Scorer | None) -> dict[str, float]:
    """Hours of each stage, printed and logged; `duplicates` for all of the gallery, of which
    `select` usually needs a part. Starting workers takes some seconds more."""
    gallery, protected = sets["gallery"], sets["protected"]
    data = _sample(gallery)
    if not data or not work.main:
        return {}
    found: list[Features] = []
    per_image = {
        "index": _seconds(lambda: [measure(x) for x in data]) / len(data),
        "features": _seconds(lambda: found.extend(map(features, data))) / len(data),
    }
    candidates = (found * CANDIDATES)[:CANDIDATES]
    compared = [compare(each, candidates) for each in found[:1]]  # warm
    seconds = _seconds(lambda: compared.extend(compare(each, candidates) for each in found[:8]))
    per_image["compare"] = seconds / len(found[:8])
    cores = work.processes.world * max(1, min(work.config.workers, os.cpu_count() or 1))
    everything = sum(map(len, sets.values()))
    hours = {
        "index": everything * per_image["index"] / cores / 3600,
        "duplicates": (
            len(gallery) * (per_image["features"] + per_image["compare"])
            + len(protected) * per_image["features"]
        )
        / cores
        / 3600,
    }
    if scorer:
        hours["score"] = _score_hours(work, scorer, data, len(gallery), len(protected))
    work.log(stage="projected", hours={name: round(x, 6) for name, x in hours.items()})
    said = ", ".join(f"{name} {_span(x)}" for name, x in hours.items())
    work.say(f"projected for {len(gallery):,} images: {said} (duplicates: if all are looked at)")
    return hours


def _score_hours(
    work: Work, scorer: Scorer, data: list[bytes], gallery: int, protected: int
) -> float:
    import torch

    from ssld.curate.near_duplicates.shortlist import VIEWS
    from ssld.data.transforms import SquashView

    view = SquashView(scorer.network.input_size)
    images = torch.stack([view(x) for x in data])
    scorer(images)  # warm
    seconds = _seconds(lambda: scorer(images)) / len(data)
    return (gallery + VIEWS * protected) * seconds / work.processes.world / 3600


def _sample(gallery: ImageSet) -> list[bytes]:
    found = []
    for row in np.unique(np.arange(SAMPLE) * len(gallery) // SAMPLE).tolist():
        try:
            data = read_address(gallery.address(row))
            features(data)
            found.append(data)
        except (OSError, Unreadable):
            continue
    return found


def _seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _span(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"
