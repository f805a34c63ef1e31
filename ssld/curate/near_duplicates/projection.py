"""How long it will take, said before it begins, from a few images of the pool itself."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ssld.curate.context import Work
from ssld.curate.near_duplicates.matching import compare
from ssld.curate.near_duplicates.shortlist import VIEWS
from ssld.curate.near_duplicates.sift import Features, features
from ssld.curate.select.score import Scorer
from ssld.curate.sets.images import ImageSet
from ssld.curate.sets.index import measure
from ssld.data.decode import Unreadable
from ssld.data.sources import read_address
from ssld.data.transforms import SquashView

SAMPLE = 24
"""Images that are tried."""
COMPARED = 8
"""Of those, images that are compared."""
CANDIDATES = 15
"""Reference images that one is compared with, about."""


def project(work: Work, sets: dict[str, ImageSet], scorer: Scorer | None) -> None:
    """Print and log hours of each stage; `duplicates` for all of the pool, of which `select`
    usually needs a part. Starting workers takes some seconds more."""
    pool, reference = sets["gallery"], sets["protected"]
    data, images, sift = _sample(pool) if work.main else ([], [], 0.0)
    if not data:
        return
    candidates = (images * CANDIDATES)[:CANDIDATES]
    compare(images[0], candidates)  # warm
    index = _seconds_each(measure, data)
    matching = _seconds_each(lambda x: compare(x, candidates), images[:COMPARED])
    cores = work.processes.world_size * max(1, min(work.config.workers, os.cpu_count() or 1))
    seconds = {
        "index": sum(map(len, sets.values())) * index / cores,
        "duplicates": (len(pool) * (sift + matching) + len(reference) * sift) / cores,
    }
    if scorer:
        view = SquashView(scorer.network.input_size)
        batch = torch.stack([view(x) for x in data])
        scorer(batch)  # warm
        score = _seconds_each(scorer, [batch]) / len(data)
        seconds["score"] = (len(pool) + VIEWS * len(reference)) * score / work.processes.world_size
    hours = {name: x / 3600 for name, x in seconds.items()}
    work.log(stage="projected", hours={name: round(x, 6) for name, x in hours.items()})
    spans = ", ".join(
        f"{name} {x:.1f} h" if x >= 1 else f"{name} {x * 60:.1f} min" for name, x in hours.items()
    )
    work.say(f"projected for {len(pool):,} images: {spans} (duplicates: if all are looked at)")


def _sample(pool: ImageSet) -> tuple[list[bytes], list[Features], float]:
    """Encoded images, evenly spread, the features of each, and seconds that these took of one;
    those that cannot be read are left out."""
    data, images, seconds = [], [], 0.0
    for row in np.unique(np.arange(SAMPLE) * len(pool) // SAMPLE).tolist():
        with contextlib.suppress(OSError, Unreadable):
            encoded = read_address(pool.address(row))
            begun = time.perf_counter()
            images.append(features(encoded))
            seconds += time.perf_counter() - begun
            data.append(encoded)
    return data, images, seconds / max(1, len(data))


def _seconds_each(job: Callable[[Any], object], items: list[Any]) -> float:
    """Of `job`, per item."""
    begun = time.perf_counter()
    for item in items:
        job(item)
    return (time.perf_counter() - begun) / len(items)
