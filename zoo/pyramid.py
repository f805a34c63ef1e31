"""A distilled backbone with its weights, as a feature pyramid or a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from zoo.catalog import find
from zoo.errors import InputError
from zoo.weights import weights_file


def backbone(
    name: str,
    *,
    pretrained: bool = True,
    features_only: bool = True,
    out_indices: Sequence[int] | None = None,
    weights_dir: str | Path | None = None,
    **kwargs: Any,
) -> nn.Module:
    """A distilled backbone, by default as a feature pyramid.

    Args:
        name: a name of the catalogue, `ssld zoo list`.
        features_only: return the maps `[b, c, h / stride, w / stride]` of `out_indices` instead of
            logits; `feature_info.channels()` and `.reduction()` of the model state c and stride.
        out_indices: which maps, by default all that timm has; from shallow to deep, as they come.
        weights_dir: folder with published files, instead of `SSLD_ZOO_DIR` or the network.
        kwargs: further arguments of `timm.create_model`.

    Raises:
        InputError: the catalogue does not have the name or the network not these maps, or the
            weights cannot be had.
    """
    entry = find(name)
    if out_indices is not None:
        if not features_only:
            raise InputError("out_indices chooses maps of a pyramid; leave it out for a classifier")
        _check_indices(name, out_indices, kwargs)
        kwargs["out_indices"] = tuple(out_indices)
    if pretrained:
        file = weights_file(entry, cache=kwargs.get("cache_dir"), folder=weights_dir)
        overlay = kwargs.get("pretrained_cfg_overlay", {})
        kwargs["pretrained_cfg_overlay"] = {**overlay, "file": str(file)}
    if features_only:
        kwargs["features_only"] = True
    return timm.create_model(name, pretrained=pretrained, **kwargs)


def _check_indices(name: str, indices: Sequence[int], kwargs: dict[str, Any]) -> None:
    """timm sorts them, and fails on those that there are not."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        pyramid: Any = timm.create_model(name, features_only=True, **kwargs)
    count = len(pyramid.feature_info.channels())
    given = list(indices) if isinstance(indices, Sequence) else []
    known = all(type(i) is int and 0 <= i < count for i in given)
    if not known or not given or given != sorted(set(given)):
        raise InputError(
            f"out_indices is {indices!r}, but {name} has the maps 0 to {count - 1}, that come from "
            f"shallow to deep, each once: give {tuple(range(1, count))}, for example"
        )
