"""What timm lacks or builds differently, made of timm's own blocks.

A function in these modules is named like the architecture that it builds. Where an architecture is
plain timm, the model says so (`pretrained_cfg["architecture"]`), and what is exported from it
loads without this package.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import timm
from timm.models import PretrainedCfg
from torch import nn

from zoo.architectures import hgnet, hrnet, lcnet, mobilenet, resnet
from zoo.catalog import Entry

Create = Callable[..., nn.Module]

_OURS = (hgnet, hrnet, lcnet, mobilenet, resnet)
# timm's names of the first convolution and of the classifier, by the start of the architecture.
_ENDS = (
    ("lcnetv2", "stem.0.conv", "classifier"),
    ("hgnetv2", "stem.stem1.conv", "head.fc"),
    ("hgnet", "stem.stem.0.conv", "head.fc"),
    ("res", "conv1.0", "fc"),
    ("hrnet", "conv1", "classifier"),
    ("se_hrnet", "conv1", "classifier"),
    ("", "conv_stem", "classifier"),
)


def architecture(entry: Entry) -> Create:
    """timm's function of the entry's architecture, or ours where timm lacks it."""
    return _named(entry.architecture)


@cache  # timm's own functions, also after two of their names were taken over
def _named(name: str) -> Create:
    ours = [getattr(module, name) for module in _OURS if hasattr(module, name)]
    return ours[0] if ours else timm.model_entrypoint(name)


def is_plain(entry: Entry) -> bool:
    """Whether timm alone knows the architecture."""
    return not architecture(entry).__module__.startswith("zoo.")


def cfg_of(entry: Entry) -> PretrainedCfg:
    """What timm wants to know of the weights: preprocessing, classifier, licence."""
    known = entry.terms in ("permissive", "conditions")
    first, classifier = next(ends for start, *ends in _ENDS if entry.architecture.startswith(start))
    return PretrainedCfg(
        url=entry.url,
        architecture=entry.architecture,
        tag=entry.tag or None,
        input_size=(3, entry.input_size, entry.input_size),
        pool_size=(entry.input_size // 32, entry.input_size // 32),
        crop_pct=entry.crop_pct,
        interpolation=entry.interpolation,
        mean=entry.mean,
        std=entry.std,
        first_conv=first,
        classifier=classifier,
        license=entry.license if known else entry.teacher_license,
    )
