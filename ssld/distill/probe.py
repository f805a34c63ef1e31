"""What frozen features are worth: k nearest neighbours and a linear classifier on top of them.

Labels are read here, for measuring; no weight and no choice of a checkpoint depends on them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
import torch
from accelerate.utils import gather_object

from ssld.common.packages import is_installed, say_left_out
from ssld.data.labels import LabelIndex, class_names
from ssld.data.loading import Batch, ViewBatches
from ssld.data.source import Source
from ssld.distill.config import ProbeConfig
from ssld.distill.setup import ClassifierRun
from ssld.models.classifier import Classifier

TEMPERATURE = 0.07
"""Of the neighbours' votes (Wu et al. 2018, section 3.4; DINO's default)."""
MANY = 10**9

Features = tuple[np.ndarray, np.ndarray]
"""float32 [n, d] and int64 [n], labels."""


@torch.inference_mode()
def features(network: Classifier, batches: Iterable[Batch]) -> Features:
    """Pooled features before the classifier, and labels, of readable labeled images."""
    pooled, labels = [], []
    for batch in batches:
        chosen = (batch.weight > 0) & (batch.labels >= 0)
        if not chosen.any():
            continue
        pooled.append(network.features(batch.images[chosen]).float().cpu().numpy())
        labels.append(batch.labels[chosen].cpu().numpy())
    if not pooled:
        return np.empty((0, 0), np.float32), np.empty(0, np.int64)
    return np.concatenate(pooled), np.concatenate(labels)


def scores(train: Features, test: Features, neighbours: int) -> dict[str, float]:
    """Share of test labels that are right: `knn` (cosine, votes weighted by exp(similarity / T)),
    `linear` (logistic regression on standardised features)."""
    # Takes a second to import, which a run without probes does not need.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    knn = KNeighborsClassifier(
        min(neighbours, len(train[1])),
        metric="cosine",
        weights=lambda distance: np.exp((1 - distance) / TEMPERATURE),  # type: ignore[arg-type]
    )
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=100, tol=1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 100 iterations tell enough
        return {
            "knn": float(knn.fit(*train).score(*test)),
            "linear": float(linear.fit(*train).score(*test)),
        }


def probe(run: ClassifierRun, network: Classifier) -> dict[str, float]:
    """Scores of a network in eval mode: learned on `data.labeled`, tested on held-out images.

    Returns:
        the scores on the main process; empty there where fewer than two classes have labels or
        scikit-learn is not installed, and on the other processes.
    """
    if not is_installed("sklearn"):
        if run.accelerator.is_main_process:
            say_left_out("sklearn", "features are not probed")
        return {}
    config = run.config.probe
    sources = [*run.labeled, *run.val]
    index = LabelIndex(class_names(sources), MANY, strict=False)
    train = _gathered(run, network, run.labeled, index, config)
    test = _gathered(run, network, run.val, index, config)
    if not run.accelerator.is_main_process:
        return {}
    if len(np.unique(train[1])) < 2 or not len(test[1]):
        return {}
    return scores(train, test, config.neighbours)


def _gathered(
    run: ClassifierRun,
    network: Classifier,
    sources: list[Source],
    index: LabelIndex,
    config: ProbeConfig,
) -> Features:
    make = ViewBatches(sources, run.eval_view, index)
    batches = run.eval_batches(make, "probe", max_unreadable=1.0, limit=config.images)
    with run.accelerator.autocast():
        part = features(network, batches)
    parts: list[Features] = gather_object([part]) if run.world_size > 1 else [part]
    parts = [p for p in parts if len(p[1])]
    if not parts:
        return part
    return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
